"""`chaos load`: checkpoints that must be refused are promoted under load, and the old revision answers throughout."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.bench.served import POLICY, Served, served
from service.chaos.checkpoints import damaged
from service.chaos.robots import Robots, Tally
from service.chaos.slow_disk import slow_disk
from service.ctl.admin_client import AdminAddress, AdminClient, AdminError
from service.memory import needed_bytes
from service.model_settings import BackendKind, ModelSettings

_POLICY_PATH = f"/v1/fleet/policies/{POLICY}"
_SLOW_BYTES_PER_S = 4e6


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    checkpoint: Path
    robots: int = 8
    timeout_s: float = 10.0
    backend: BackendKind = "triton"
    model: ModelSettings


def measure_loads(settings: LoadSettings) -> dict[str, Any]:
    """Raises ServiceStartError."""
    from service.chaos.twins import make_twins

    with tempfile.TemporaryDirectory(prefix="premotor-chaos-") as directory:
        store, elsewhere = Path(directory) / "store", Path(directory) / "elsewhere"
        store.mkdir()
        twins = make_twins(settings.checkpoint, store, policy=POLICY)
        (store / twins.locations[1]).rename(elsewhere)
        locations = damaged(store / twins.locations[0], store)
        weights = (store / twins.locations[0] / "model.safetensors").stat().st_size
        found: dict[str, Any] = {}
        with slow_disk(elsewhere, bytes_per_s=_SLOW_BYTES_PER_S) as url:
            with _service(settings, store, twins.locations[0]) as service:
                robots = _robots(settings, service, twins.questions)
                attempts = {**locations, "slow disk": url}
                found |= asyncio.run(_attempt(service, robots, attempts, twins.revisions[0]))
            # Enough for the one that serves and not for a second.
            needed = needed_bytes(weights, own_process=settings.backend == "triton")
            arguments = ("--memory-budget-bytes", str(int(1.5 * needed)))
            with _service(settings, store, twins.locations[0], *arguments) as service:
                robots = _robots(settings, service, twins.questions)
                found |= asyncio.run(_attempt(service, robots, {"too little memory": url}, twins.revisions[0]))
    return {
        "attempts": found,
        "requests": sum(each["requests"] for each in found.values()),
        "failed": sum(each["failed"] for each in found.values()),
        "wrong_revision": sum(each["wrong_revision"] for each in found.values()),
        "not_as_expected": [what for what, each in found.items() if not each["as_expected"]],
        "backend": settings.backend,
    }


def _service(settings: LoadSettings, store: Path, location: str, *arguments: str) -> Any:
    return served(
        store / location, settings.model, backend=settings.backend, arguments=("--store", str(store), *arguments)
    )


def _robots(settings: LoadSettings, service: Served, questions: Any) -> Robots:
    return Robots(service.grpc_address, questions, num_robots=settings.robots, timeout_s=settings.timeout_s)


async def _attempt(
    service: Served, robots: Robots, attempts: Mapping[str, str], serving: str
) -> dict[str, dict[str, Any]]:
    """Registers and promotes one after another; what each did to the robots meanwhile."""
    found = {}
    robots.start()
    try:
        for what, location in attempts.items():
            robots.tally = Tally()
            error = await asyncio.to_thread(_promote, service, location)
            status = await asyncio.to_thread(_status, service)
            # A slow disk is no reason to refuse: it only takes long.
            as_expected = (not error and status != serving) if what == "slow disk" else (error and status == serving)
            latencies_ms = np.array(robots.tally.latencies_s) * 1e3
            found[what] = {
                "error": error,
                "as_expected": bool(as_expected),
                "requests": robots.tally.num_requests,
                "failed": robots.tally.failures.total(),
                "wrong_revision": len(robots.tally.wrong_revision),
                "latency_p50_ms": float(np.median(latencies_ms)),
                "latency_max_ms": float(latencies_ms.max()),
            }
            print(f"chaos: {what}: {error or 'promoted'}", file=sys.stderr, flush=True)
    finally:
        await robots.stop()
    return found


def _promote(service: Served, location: str) -> str:
    """Why it failed; empty when it did not."""
    with AdminClient(AdminAddress(url=service.admin_url)) as admin:
        try:
            registered = admin.carry_out(f"{_POLICY_PATH}/revisions", {"location": location})
            admin.carry_out(f"{_POLICY_PATH}/revisions/{registered['revision']}:promote")
            return ""
        except AdminError as error:
            return str(error)


def _status(service: Served) -> str:
    with AdminClient(AdminAddress(url=service.admin_url)) as admin:
        return admin.get(_POLICY_PATH)["stable"]


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = [f"{what}: {result['attempts'][what]['error'] or 'promoted'}" for what in result["not_as_expected"]]
    for name in ("failed", "wrong_revision"):
        if result[name]:
            missed.append(f"{name} is {result[name]}, expected 0")
    return missed


def format_loads(result: dict[str, Any]) -> str:
    lines = [
        f"{what:<18} {'as expected' if each['as_expected'] else 'NOT AS EXPECTED':<16} {each['requests']:>5} requests, "
        f"{each['failed']} failed, worst {each['latency_max_ms']:.0f} ms  {each['error']}"
        for what, each in result["attempts"].items()
    ]
    lines.append(
        f"{result['requests']} requests, {result['failed']} failed, {result['wrong_revision']} of a wrong revision"
    )
    return "\n".join(lines)
