"""A server in a process of its own: started, ready once it says so in a line of JSON, stopped.

Owns the process. Does not own what is asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from premotor.client.fleet.endpoint import MissingPeerError
from premotor.client.fleet.machine import pinned

START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 30.0
_TAIL_BYTES = 1500


@dataclass(frozen=True, kw_only=True, eq=False)
class RunningServer:
    """`ready` is what it said of itself."""

    process: asyncio.subprocess.Process = field(repr=False)
    ready: dict[str, Any]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def end(self) -> str:
        """How its process ended; empty while it runs."""
        return "" if self.process.returncode is None else f"its server ended with {self.process.returncode}"


@contextlib.asynccontextmanager
async def running(command: Sequence[str], *, source: Path, cpus: Sequence[int]) -> AsyncIterator[RunningServer]:
    """`source` is the folder it runs in. Raises MissingPeerError when it does not start, with what it said last."""
    with tempfile.TemporaryFile() as log:
        try:
            with pinned(cpus):
                process = await asyncio.create_subprocess_exec(
                    *command, cwd=source, stdout=asyncio.subprocess.PIPE, stderr=log
                )
        except OSError as error:
            raise MissingPeerError(f"{command[0]}: {error.strerror}; `make peers` makes what is not there") from None
        try:
            assert process.stdout is not None
            try:
                ready = await asyncio.wait_for(_ready(process.stdout), START_TIMEOUT_S)
            except (asyncio.TimeoutError, ValueError) as error:
                log.seek(0)
                tail = log.read()[-_TAIL_BYTES:].decode(errors="replace")
                raise MissingPeerError(f"{' '.join(command[:3])} did not start ({error}): {tail}") from None
            yield RunningServer(process=process, ready=ready)
        finally:
            await _stop(process)


async def run_command(command: Sequence[str], *, source: Path) -> None:
    """Raises MissingPeerError with the end of what it said when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=source, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
    finally:
        await _stop(process)
    if process.returncode != 0:
        raise MissingPeerError(f"{' '.join(command[:3])} failed: {said[-_TAIL_BYTES:].decode(errors='replace')}")


async def _ready(output: asyncio.StreamReader) -> dict[str, Any]:
    line = await output.readline()
    if not line:
        raise ValueError("it ended")
    return json.loads(line)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
