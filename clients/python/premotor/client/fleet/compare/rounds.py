"""Interleaved rounds over the ways, and what they add up to.

Owns the order of the three phases, what is kept after each, and what makes a comparison a failed one. In each round of
a phase every way has one block, in another order; ratios are taken inside rounds.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from typing import Any

from premotor.client.fleet.compare.capacity_phase import capacity_phase
from premotor.client.fleet.compare.fleet_phase import fleet_phase
from premotor.client.fleet.compare.latency_phase import BARE, latency_phase
from premotor.client.fleet.compare.load import fleet_load
from premotor.client.fleet.compare.settings import PEER_PACKAGES, PUBLISHED_ROUNDS, CompareSettings
from premotor.client.fleet.compare.ways import Ways, running_ways
from premotor.client.fleet.machine import (
    describe_command,
    describe_commit,
    describe_machine,
    describe_versions,
    pinned,
    version_in,
)

Keep = Callable[[dict[str, Any]], None]


async def compare(settings: CompareSettings, keep: Keep) -> dict[str, Any]:
    """All phases; `keep` is given what there is after each.

    Raises MissingPeerError when our own service does not start, FixRequestError for what its policy has not, AskError
    when the bare forward, which all is measured by, stops answering.
    """
    with pinned(settings.client_cpus):
        async with running_ways(settings) as ways:
            for way, reason in ways.missing.items():
                print(f"missing: {way}: {reason}", file=sys.stderr)
            return await compare_ways(settings, ways, keep)


async def compare_ways(settings: CompareSettings, ways: Ways, keep: Keep) -> dict[str, Any]:
    """As `compare`, of ways that run."""
    result: dict[str, Any] = {
        "complete": False,
        "problems": [],
        "marks": [],
        "command": describe_command(),
        "commit": await asyncio.to_thread(describe_commit, settings.source),
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": _plain(settings),
        "asked": ways.asked,
        "missing": ways.missing,
        # Filled as ways fail.
        "failed": ways.failed,
        "policy": {
            "revision": ways.description.revision,
            "action_horizon": ways.description.action_horizon,
            "num_inference_steps": ways.description.num_inference_steps,
        },
        "machine": describe_machine(),
        "versions": describe_versions() | _peer_versions(settings),
        "latency": await latency_phase(settings, ways),
        "fleet": None,
        "capacity": None,
    }
    keep = partial(_keep, settings, ways, keep)
    keep(result)
    bare_p50_s = result["latency"]["ways"][BARE]["p50_ms"]["median"] / 1e3
    load = fleet_load(settings, bare_p50_s=bare_p50_s, action_horizon=ways.description.action_horizon)
    result["fleet"] = await fleet_phase(settings, ways, load)
    keep(result)
    if settings.robot_counts:
        result["capacity"] = await capacity_phase(settings, ways, load)
    result["complete"] = True
    keep(result)
    return result


def _keep(settings: CompareSettings, ways: Ways, keep: Keep, result: dict[str, Any]) -> None:
    result["marks"] = list(_marks(settings, ways))
    result["problems"] = list(_problems(result))
    keep(result)


def _marks(settings: CompareSettings, ways: Ways) -> Iterable[str]:
    """What a reader of figures must know beside them."""
    if not (settings.client_cpus and settings.server_cpus):
        yield "not pinned: robots and servers share this machine's CPUs"
    if "triton" in settings.ways and settings.backend == "triton":
        # Over Triton's gRPC service, which was tried, the same questions took longer still.
        yield (
            "triton: its questions go whole through Triton's HTTP service, which reads 4 KiB at a time; those of our "
            "service lie in shared memory from 64 KiB on"
        )
    if ways.rest.num_in_vain:
        yield f"{ways.rest.num_in_vain} blocks began beside a server that was still busy with what came before"
    counted = [("latency and fleet", settings.rounds)]
    counted += [("capacity", settings.capacity_rounds)] if settings.robot_counts else []
    for phase, rounds in counted:
        if rounds < PUBLISHED_ROUNDS:
            yield f"{phase}: {rounds} rounds, a figure to be published has at least {PUBLISHED_ROUNDS}"


def _problems(result: dict[str, Any]) -> Iterable[str]:
    """What makes it a failed comparison. A peer that is missing does not."""
    for way, reason in result["failed"].items():
        yield f"{way} failed: {reason}"
    for phase in ("latency", "fleet", "capacity"):
        for way, found in result[phase]["ways"].items() if result[phase] is not None else ():
            # None where no chunk came, or the way saw other pixels.
            if found.get("actions_equal", True) is False:
                yield f"{phase}: the actions of {way} are not those of the bare forward"
            if found.get("invalid_rounds"):
                yield (
                    f"{phase}: {found['invalid_rounds']} rounds of {way} do not count, for the robots' own process "
                    "could not keep its times"
                )
            if found.get("num_stale_actions"):
                yield f"{phase}: {found['num_stale_actions']} stale actions of {way} were played"


def _peer_versions(settings: CompareSettings) -> dict[str, str]:
    found = {
        package: version_in(settings.peers / way, package)
        for way, package in PEER_PACKAGES.items()
        if way in settings.ways
    }
    return {package: version for package, version in found.items() if version is not None}


def _plain(settings: CompareSettings) -> dict[str, Any]:
    """Without paths, which are a machine's."""
    hidden = ("checkpoint", "source", "python", "peers")
    return {name: value for name, value in asdict(settings).items() if name not in hidden}
