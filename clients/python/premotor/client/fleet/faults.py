"""What goes wrong during a run, and when: a schedule, and carrying it out.

Owns the schedule and its file, and the commands that restart and swap. Does not own what a cut does to bytes (proxy.py)
nor what the robots make of it (playback.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from premotor.client.fleet.proxy import ShapingProxy

FaultKind = Literal["pause", "loss", "partition", "restart", "swap"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
# The service's own start takes seconds, a loaded machine makes them many.
COMMAND_TIMEOUT_S = 180.0
_SHORTEST_DEFAULT_S = 30.0
_OUTPUT_BYTES = 500


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`at_s` after the first robot's first question. A restart and a swap last as long as their command does."""

    kind: FaultKind
    at_s: float
    duration_s: float = 0.0
    # Of a loss: the share of segments.
    loss: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"kind {self.kind!r} came, expected one of {', '.join(FAULT_KINDS)}")
        lasts = self.kind in ("pause", "loss", "partition")
        if self.at_s < 0 or (self.duration_s > 0) != lasts:
            raise ValueError(f"{self.kind} at {self.at_s} s for {self.duration_s} s came: only cuts and losses last")
        if not 0 <= self.loss <= 0.5 or (self.loss > 0) != (self.kind == "loss"):
            raise ValueError(f"{self.kind} with a loss of {self.loss} came, expected up to 0.5 for a loss and 0 else")


@dataclass(frozen=True, kw_only=True)
class FaultEvent:
    """A fault that happened, in seconds after the start. `problem` is why its command failed, "" when it did not."""

    kind: FaultKind
    start_s: float
    end_s: float
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class FaultCommands:
    """How the server is restarted and how a revision is swapped; empty where this run does neither."""

    restart: str = ""
    swap: str = ""

    def of(self, kind: FaultKind) -> str:
        return {"restart": self.restart, "swap": self.swap}.get(kind, "")


def default_faults(duration_s: float, commands: FaultCommands) -> tuple[Fault, ...]:
    """Three pauses of 200 ms, 2 % loss, a partition of 5 s, and a restart and a swap where there are commands for them.

    Raises ValueError for a run too short to recover in between.
    """
    if duration_s < _SHORTEST_DEFAULT_S:
        raise ValueError(f"the default faults need a run of {_SHORTEST_DEFAULT_S:g} s, {duration_s:g} s came")
    faults = [Fault(kind="pause", at_s=share * duration_s, duration_s=0.2) for share in (0.08, 0.12, 0.16)]
    faults.append(Fault(kind="loss", at_s=0.2 * duration_s, duration_s=0.12 * duration_s, loss=0.02))
    faults.append(Fault(kind="partition", at_s=0.4 * duration_s, duration_s=5.0))
    faults += [Fault(kind="restart", at_s=0.62 * duration_s)] if commands.restart else []
    faults += [Fault(kind="swap", at_s=0.84 * duration_s)] if commands.swap else []
    return tuple(faults)


def read_faults(path: Path, commands: FaultCommands) -> tuple[Fault, ...]:
    """From JSON: a list of objects with the fields of Fault. Raises ValueError for one that is none, OSError."""
    content: Any = json.loads(path.read_text())
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path.name} holds no list of objects")
    try:
        faults = tuple(sorted((Fault(**entry) for entry in content), key=lambda fault: fault.at_s))
    except TypeError as error:
        raise ValueError(f"{path.name}: {error}") from None
    for fault in faults:
        if fault.kind in ("restart", "swap") and not commands.of(fault.kind):
            raise ValueError(f"{path.name} has a {fault.kind}, which needs --{fault.kind}-command")
    return faults


async def carry_out(
    faults: Sequence[Fault], proxy: ShapingProxy, commands: FaultCommands, *, start_s: float
) -> tuple[FaultEvent, ...]:
    """Does each at its time on the monotonic clock, `start_s` being 0; returns when the last is over."""
    events = await asyncio.gather(*(_carry_out_one(fault, proxy, commands, start_s) for fault in faults))
    return tuple(sorted(events, key=lambda event: event.start_s))


async def _carry_out_one(fault: Fault, proxy: ShapingProxy, commands: FaultCommands, start_s: float) -> FaultEvent:
    await asyncio.sleep(max(0.0, start_s + fault.at_s - time.monotonic()))
    began_s = time.monotonic() - start_s
    event = FaultEvent(kind=fault.kind, start_s=began_s, end_s=began_s + fault.duration_s)
    if fault.kind in ("pause", "partition"):
        proxy.cut(fault.duration_s, is_partition=fault.kind == "partition")
        return event
    if fault.kind == "loss":
        proxy.set_loss(fault.loss)
        await asyncio.sleep(fault.duration_s)
        proxy.set_loss(0.0)
        return event
    problem = await _run_command(commands.of(fault.kind))
    return replace(event, end_s=time.monotonic() - start_s, problem=problem)


async def _run_command(command: str) -> str:
    """Why it failed; empty when it did not."""
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return f"{command!r} does not start: {error.strerror}"
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    except asyncio.TimeoutError:
        return f"{command!r} did not end within {COMMAND_TIMEOUT_S:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        return f"{command!r} ended with {process.returncode}: {output[-_OUTPUT_BYTES:].decode(errors='replace')}"
    return ""
