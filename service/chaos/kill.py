"""`chaos kill`: Triton, the gateway and the registry's database go away in turn under load, and all comes back alone.

Every request must get a chunk or a typed error within its deadline, and the registry must be as it was. SQLite has no
process to kill: for longer than anybody waits, nobody else can begin a transaction, not even one that reads.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from service.bench.served import POLICY
from service.chaos.house import House
from service.chaos.robots import Robots
from service.model_settings import BackendKind, ModelSettings
from service.registry import Fleet, Registry, open_database

_RECOVERY_TIMEOUT_S = 120.0
# Longer than any of the service's waits for the database.
_LOCKED_S = 7.0
_QUIET_S = 1.0
_LOCK_TIMEOUT_S = 30.0
# What a robot knows how to go on from.
_TYPED = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"})
# The locks of a database in WAL mode, in the file beside it (https://www.sqlite.org/walformat.html, section 2.3): one
# byte each to write, to checkpoint and to recover, and five of which each reader takes one.
_WAL_LOCKS_AT, _WAL_LOCKS_BYTES = 120, 8


@dataclass(frozen=True, kw_only=True)
class KillSettings:
    checkpoint: Path
    kills: int = 50
    robots: int = 8
    # Longer than any answer takes, shorter than the database is away.
    timeout_s: float = 5.0
    backend: BackendKind = "triton"
    model: ModelSettings


def measure_kills(settings: KillSettings) -> dict[str, Any]:
    """Raises ServiceStartError."""
    from service.chaos.twins import make_twins

    with tempfile.TemporaryDirectory(prefix="premotor-chaos-") as name:
        directory = Path(name)
        (directory / "store").mkdir()
        twins = make_twins(settings.checkpoint, directory / "store", policy=POLICY)
        house = House(directory / "store" / twins.locations[0], settings.model, directory, backend=settings.backend)
        return asyncio.run(_Kills(settings, house).run(twins.questions))


class _Kills:
    def __init__(self, settings: KillSettings, house: House) -> None:
        self._settings, self._house = settings, house
        # The longest time that no robot got a chunk, by what was killed.
        self._gaps_s: dict[str, list[float]] = {}

    async def run(self, questions: Any) -> dict[str, Any]:
        try:
            await self._house.start()
            before = self._fleet()
            robots = Robots(
                self._house.grpc_address,
                questions,
                num_robots=self._settings.robots,
                timeout_s=self._settings.timeout_s,
                pause_s=0.05,
            )
            robots.start()
            ways: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                ("gateway", partial(self._kill_gateway, robots)),
                ("database", self._take_database_away),
            ]
            if self._settings.backend == "triton":
                ways.insert(0, ("triton", self._kill_triton))
            recovered = True
            for number in range(self._settings.kills):
                what, kill = ways[number % len(ways)]
                await asyncio.sleep(_QUIET_S)
                killed_s = time.perf_counter()
                await kill()
                recovered = await self._recovered(robots)
                gap_s = _longest_gap_s(robots.tally.ended_s, killed_s)
                self._gaps_s.setdefault(what, []).append(gap_s)
                print(
                    f"chaos: kill {number + 1} of {self._settings.kills}, {what}: {gap_s:.1f} s without an answer",
                    file=sys.stderr,
                    flush=True,
                )
                if not recovered:
                    break
            tally = await robots.stop()
            intact = self._fleet().policies == before.policies and self._database_is_sound()
        finally:
            await self._house.stop()
        return self._result(tally, intact=intact, recovered=recovered)

    async def _kill_triton(self) -> None:
        while not self._house.kill_triton():  # noqa: ASYNC110  # it is being started again
            await asyncio.sleep(0.1)

    async def _kill_gateway(self, robots: Robots) -> None:
        robots.gateway_is_down = True
        self._house.kill()
        # What a supervisor does; that it answers again is the service's own work.
        await self._house.start()
        robots.gateway_is_down = False

    async def _take_database_away(self) -> None:
        await lock_out(self._house.state / "registry.db", _LOCKED_S)

    async def _recovered(self, robots: Robots) -> bool:
        """Waits until a robot has a chunk that it asked for after the kill; False when none has for too long."""
        since_s = time.perf_counter()
        while time.perf_counter() - since_s < _RECOVERY_TIMEOUT_S:
            ended_s = robots.tally.ended_s
            if ended_s and ended_s[-1] - robots.tally.latencies_s[-1] > since_s:
                return True
            await asyncio.sleep(0.02)
        return False

    def _fleet(self) -> Fleet:
        registry = Registry(open_database(f"sqlite:///{self._house.state}/registry.db"))
        try:
            return registry.fleet()
        finally:
            registry.close()

    def _database_is_sound(self) -> bool:
        connection = sqlite3.connect(self._house.state / "registry.db")
        try:
            return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        finally:
            connection.close()

    def _result(self, tally: Any, *, intact: bool, recovered: bool) -> dict[str, Any]:
        latencies_ms = np.array(tally.latencies_s) * 1e3
        return {
            "kills": {what: len(seconds) for what, seconds in self._gaps_s.items()},
            "requests": tally.num_requests,
            "answered": len(tally.latencies_s),
            # Or none by the service, while nobody was there to type it.
            "typed_errors": dict(tally.failures - tally.untyped),
            "untyped_errors": dict(+tally.untyped),
            "late": tally.late,
            "wrong_revision": len(tally.wrong_revision),
            "wrong_revision_examples": tally.wrong_revision[:10],
            "longest_gap_s": {what: max(seconds) for what, seconds in self._gaps_s.items()},
            "registry_intact": intact,
            "recovered": recovered,
            "latency_p50_ms": float(np.median(latencies_ms)),
            "backend": self._settings.backend,
        }


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = []
    if not result["recovered"]:
        missed.append(f"no chunk for {_RECOVERY_TIMEOUT_S:g} s after a kill")
    if result["untyped_errors"]:
        missed.append(f"errors that the service did not give itself: {result['untyped_errors']}")
    if useless := {name: count for name, count in result["typed_errors"].items() if name not in _TYPED}:
        missed.append(f"errors that tell a robot nothing: {useless}")
    for name in ("late", "wrong_revision"):
        if result[name]:
            missed.append(f"{name} is {result[name]}, expected 0")
    if not result["registry_intact"]:
        missed.append("the registry is not as it was")
    return missed


def format_kills(result: dict[str, Any]) -> str:
    kills = ", ".join(f"{count} {what}" for what, count in result["kills"].items())
    gaps = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in result["longest_gap_s"].items())
    return (
        f"killed {kills}: {result['requests']} requests, {result['answered']} answered, typed errors "
        f"{result['typed_errors'] or 'none'}, untyped {result['untyped_errors'] or 'none'}, "
        f"{result['late']} later than their deadline, "
        f"{result['wrong_revision']} wrong\n"
        f"longest without an answer: {gaps}; registry {'intact' if result['registry_intact'] else 'CHANGED'}"
    )


def _longest_gap_s(ended_s: list[float], since_s: float) -> float:
    """Between two chunks, from the last one before `since_s` on."""
    before = [time_s for time_s in ended_s if time_s <= since_s]
    moments = [*before[-1:], *(time_s for time_s in ended_s if time_s > since_s)]
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)


async def lock_out(database: Path, seconds: float) -> None:
    """For so long no other process begins a transaction on an SQLite database in WAL mode, to read or to write.

    BEGIN EXCLUSIVE would let readers through. Raises TimeoutError when those that have begun do not end.
    """
    with database.with_name(f"{database.name}-shm").open("r+b") as locks:
        async with asyncio.timeout(_LOCK_TIMEOUT_S):
            while not _locked(locks):  # noqa: ASYNC110  # nobody says when a lock of a file is free
                await asyncio.sleep(0.005)
        await asyncio.sleep(seconds)


def _locked(locks: IO[bytes]) -> bool:
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, _WAL_LOCKS_BYTES, _WAL_LOCKS_AT)
    except BlockingIOError:
        return False
    return True
