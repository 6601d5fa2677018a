"""The HTTP server of the admin plane: listening from the moment it exists, until it is stopped.

Owns the socket and uvicorn's settings. Does not own the app, nor signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from service.credentials import ServingTls

_STOP_TIMEOUT_S = 5.0
# How often the date of answers goes on. uvicorn's own loop looks ten times a second whether it is to stop.
_TICK_S = 1.0


class _Uvicorn(uvicorn.Server):
    """Stops when it is told to, without looking whether it was."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever drains the gateway first."""
        yield


class AdminServer:
    """Raises OSError when it cannot listen."""

    def __init__(self, app: FastAPI, host: str, port: int, tls: ServingTls | None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.port: int = self._socket.getsockname()[1]
        # Logging is set up once, by the entry point.
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        config.load()
        # uvicorn makes a context of files, which it reads once.
        config.ssl = tls.context() if tls is not None else None
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="admin")

    async def stop(self) -> None:
        self._server.stop()
        done, _ = await asyncio.wait({self._task}, timeout=_STOP_TIMEOUT_S)
        if not done:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()
