"""One run of a fleet: proxy and faults here, robots in processes of their own, one report.

Owns the order of things and the report. Does not own what is asked (worker.py) or counted (figures.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from premotor.client.fleet.faults import Fault, FaultCommands, FaultEvent, carry_out
from premotor.client.fleet.figures import RobotFigures, fleet_figures, robot_figures
from premotor.client.fleet.machine import check_cpus, describe_machine, describe_versions, pinned
from premotor.client.fleet.network import NONE, PROFILES
from premotor.client.fleet.processes import START_DELAY_S, FleetProcesses
from premotor.client.fleet.proxy import ShapingProxy
from premotor.client.fleet.robot import RobotLog
from premotor.client.fleet.settings import IN_FLIGHT, FleetSettings
from premotor.client.fleet.worker import OpenLoop


@dataclass(frozen=True, kw_only=True, eq=False)
class FleetRun:
    """What came out: every robot's figures, for plots, and the report, for JSON."""

    settings: FleetSettings
    robots: tuple[RobotFigures, ...]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """What became of the run, before it is counted."""

    logs: list[RobotLog]
    events: tuple[FaultEvent, ...]
    driver_pipe_s: float | None


def run_fleet(settings: FleetSettings, faults: Sequence[Fault] = (), commands: FaultCommands | None = None) -> FleetRun:
    """Raises AskError when a robot could not connect or got what it could not play, MissingPeerError, FixRequestError;
    ValueError for what `check_run` refuses."""
    check_run(settings, faults)
    with pinned(settings.pin):
        return asyncio.run(_run(settings, faults, commands or FaultCommands()))


def check_run(settings: FleetSettings, faults: Sequence[Fault]) -> None:
    """Raises ValueError for CPUs that this process may not have, and for a proxy on the way of an encrypted wire."""
    check_cpus(settings.pin)
    if settings.tls is not None and _needs_proxy(settings, faults):
        raise ValueError("a proxy cannot answer with the server's certificate: no network profile, no faults with TLS")


def _needs_proxy(settings: FleetSettings, faults: Sequence[Fault]) -> bool:
    return settings.network != NONE.name or bool(faults)


async def _run(settings: FleetSettings, faults: Sequence[Fault], commands: FaultCommands) -> FleetRun:
    began = datetime.now(timezone.utc)
    proxy = None
    addresses = settings.addresses
    try:
        if _needs_proxy(settings, faults):
            proxy = ShapingProxy(PROFILES[settings.network], seed=settings.seed)
            addresses = tuple([await proxy.listen(address) for address in settings.addresses])
        asked = await _ask(settings, addresses, faults, proxy, commands)
    finally:
        if proxy is not None:
            await proxy.close()
    robots = tuple(robot_figures(settings, log) for log in asked.logs)
    report = {
        "settings": _settings_figures(settings),
        "faults_asked_for": [asdict(fault) for fault in faults],
        "in_flight": IN_FLIGHT[settings.endpoint],
        "began": began.isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "pinned": bool(settings.pin),
        "versions": describe_versions(),
        "proxy_bytes": {"up": proxy.up_bytes, "down": proxy.down_bytes} if proxy is not None else None,
        "driver_pipe_ms": None if asked.driver_pipe_s is None else 1e3 * asked.driver_pipe_s,
        **fleet_figures(settings, robots, asked.events),
    }
    return FleetRun(settings=settings, robots=robots, report=report)


async def _ask(
    settings: FleetSettings,
    addresses: tuple[str, ...],
    faults: Sequence[Fault],
    proxy: ShapingProxy | None,
    commands: FaultCommands,
) -> _Asked:
    async with FleetProcesses(settings, addresses) as processes:
        start_s = time.monotonic() + START_DELAY_S
        breaking = (
            asyncio.create_task(carry_out(faults, proxy, commands, start_s=start_s)) if proxy is not None else None
        )
        try:
            logs = await processes.run(OpenLoop(settings=settings, start_s=start_s))
            events = await breaking if breaking is not None else ()
        finally:
            if breaking is not None:
                breaking.cancel()
                await asyncio.gather(breaking, return_exceptions=True)
        return _Asked(logs=logs, events=events, driver_pipe_s=processes.driver_pipe_s)


def _settings_figures(settings: FleetSettings) -> dict[str, Any]:
    """Everything that was asked for, and the numbers that follow from it; no secrets, hosts or paths."""
    hidden = ("token", "tls", "description", "embodiment", "lerobot_python", "addresses")
    plain = {name: value for name, value in asdict(settings).items() if name not in hidden}
    return {
        **plain,
        "num_servers": len(settings.addresses),
        "policy": settings.description.name,
        "embodiment": settings.embodiment.name,
        "cameras": [f"{camera.name} {camera.width}x{camera.height}" for camera in settings.embodiment.cameras],
        "action_horizon": settings.description.action_horizon,
        "chunk_s": settings.chunk_s,
        "deadline_s": settings.deadline_s,
        "answer_timeout_s": settings.answer_timeout_s,
        "network_profile": asdict(PROFILES[settings.network]) if settings.network != NONE.name else None,
    }
