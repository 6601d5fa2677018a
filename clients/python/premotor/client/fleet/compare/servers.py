"""A server in a process of its own: started, ready once it says so in a line of JSON, stopped.

Owns the process. Does not own what is asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from premotor.client.fleet.endpoint import MissingPeerError

START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 30.0
_TAIL_BYTES = 1500


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """`ready` is what it said of itself."""

    pid: int
    ready: dict[str, Any]


@contextlib.asynccontextmanager
async def running(command: Sequence[str], *, source: Path, cpus: Sequence[int]) -> AsyncIterator[RunningServer]:
    """`source` is the folder it runs in. Raises MissingPeerError when it does not start, with what it said last."""
    with tempfile.TemporaryFile() as log:
        try:
            with _kept_on(cpus):
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
            yield RunningServer(pid=process.pid, ready=ready)
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


@contextlib.contextmanager
def _kept_on(cpus: Sequence[int]) -> Iterator[None]:
    """What is started inside inherits these CPUs; this process has its own again afterwards."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
