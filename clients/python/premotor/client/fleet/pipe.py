"""A program that is asked over its standard input and output: frames of JSON and raw numbers.

Owns the process and the frames: a length of the header, a length of the data, the header as JSON, the data. What is
read here is lengths, JSON and numbers, never a pickle. Does not own what a header means.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import struct
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from premotor.client.fleet.endpoint import AskError, MissingPeerError

_LENGTHS = struct.Struct("<II")
# Importing torch and a peer takes tens of seconds on a busy machine.
START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0
_MOST_BYTES = 64 * 1024 * 1024
_TAIL_BYTES = 800


class ProgramError(AskError):
    """The program's own word for a failure; `told` is all that came with it."""

    def __init__(self, kind: str, message: str, told: Mapping[str, Any] | None = None) -> None:
        super().__init__(kind, message)
        self.told = told or {}


class PipeProgram:
    """`start` it, give it the frames of all questions as views, then `call` it."""

    def __init__(self, command: Sequence[str], *, remedy: str) -> None:
        """`remedy` is what to do where the command is not there."""
        self._command = tuple(command)
        self._remedy = remedy
        self._process: asyncio.subprocess.Process | None = None
        # A file: a pipe that nobody reads would stop a talkative program.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close
        self._waiting: dict[str, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._ids = itertools.count()
        self._reading: asyncio.Task[None] | None = None

    async def start(self, views: Sequence[Mapping[str, np.ndarray | bytes]]) -> None:
        """Raises MissingPeerError."""
        try:
            self._process = await self._spawn()
        except FileNotFoundError:
            raise MissingPeerError(f"there is no {self._command[0]}: {self._remedy}") from None
        try:
            await asyncio.wait_for(self._read_frame(), START_TIMEOUT_S)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError):
            tail = await self._stop()
            raise MissingPeerError(f"{self._command} did not start: {tail}") from None
        self._reading = asyncio.create_task(self._read())
        for images in views:
            await self._send_view(images)

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
        )

    async def call(self, header: Mapping[str, Any], data: bytes, *, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The program's answer. Raises ProgramError for a failure that it tells of, AskError for any other."""
        process = self._process
        assert process is not None and process.stdin is not None
        number = str(next(self._ids))
        answer: asyncio.Future[tuple[dict[str, Any], bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        encoded = json.dumps({**header, "id": number}).encode()
        process.stdin.write(_LENGTHS.pack(len(encoded), len(data)) + encoded + data)
        try:
            told, content = await asyncio.wait_for(answer, timeout_s)
        except asyncio.TimeoutError:
            raise AskError("DeadlineExceededError", f"no answer within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if "problem" in told:
            raise ProgramError(told["kind"], told["problem"], told)
        return told, content

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def close(self) -> None:
        """Ends the program. One that never started has nothing to end."""
        await self._stop()
        self._log.close()

    async def _send_view(self, images: Mapping[str, np.ndarray | bytes]) -> None:
        cameras, data = [], b""
        for name, frame in images.items():
            if isinstance(frame, bytes):
                raise MissingPeerError("this way takes raw frames only: --image-encoding raw")
            cameras.append({"name": name, "height": frame.shape[0], "width": frame.shape[1]})
            data += np.ascontiguousarray(frame).tobytes()
        await self.call({"verb": "view", "cameras": cameras}, data, timeout_s=START_TIMEOUT_S)

    async def _read(self) -> None:
        try:
            while True:
                told, content = await self._read_frame()
                waiting = self._waiting.get(told["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result((told, content))
        except asyncio.IncompleteReadError:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(AskError("ProgramEnded", f"{self._command[0]} ended"))

    async def _read_frame(self) -> tuple[dict[str, Any], bytes]:
        assert self._process is not None and self._process.stdout is not None
        reader = self._process.stdout
        header_bytes, data_bytes = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if header_bytes + data_bytes > _MOST_BYTES:
            raise asyncio.IncompleteReadError(b"", header_bytes + data_bytes)
        return json.loads(await reader.readexactly(header_bytes)), await reader.readexactly(data_bytes)

    async def _stop(self) -> str:
        """The end of what it said on stderr."""
        process, self._process = self._process, None
        if process is None:
            return ""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._log.seek(0)
        return self._log.read()[-_TAIL_BYTES:].decode(errors="replace")
