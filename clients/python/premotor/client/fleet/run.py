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
from premotor.client.fleet.machine import describe_machine, describe_versions, pin
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


def run_fleet(settings: FleetSettings, faults: Sequence[Fault] = (), commands: FaultCommands | None = None) -> FleetRun:
    """Raises AskError when a robot could not connect, MissingPeerError, FixRequestError, ValueError."""
    pin(settings.pin)
    return asyncio.run(_run(settings, faults, commands or FaultCommands()))


async def _run(settings: FleetSettings, faults: Sequence[Fault], commands: FaultCommands) -> FleetRun:
    began = datetime.now(timezone.utc)
    proxy = None
    addresses = settings.addresses
    try:
        if settings.network != NONE.name or faults:
            proxy = ShapingProxy(PROFILES[settings.network], seed=settings.seed)
            addresses = tuple([await proxy.listen(address) for address in settings.addresses])
        logs, events = await _ask(settings, addresses, faults, proxy, commands)
    finally:
        if proxy is not None:
            await proxy.close()
    robots = tuple(robot_figures(settings, log) for log in logs)
    report = {
        "settings": _settings_figures(settings),
        "faults_asked_for": [asdict(fault) for fault in faults],
        "in_flight": IN_FLIGHT[settings.endpoint],
        "began": began.isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "proxy_bytes": {"up": proxy.up_bytes, "down": proxy.down_bytes} if proxy is not None else None,
        **fleet_figures(settings, robots, events),
    }
    return FleetRun(settings=settings, robots=robots, report=report)


async def _ask(
    settings: FleetSettings,
    addresses: tuple[str, ...],
    faults: Sequence[Fault],
    proxy: ShapingProxy | None,
    commands: FaultCommands,
) -> tuple[list[RobotLog], tuple[FaultEvent, ...]]:
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
    return logs, events


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
