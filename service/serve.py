"""`python -m service serve`: the whole service in one event loop, and Triton below it.

Owns the order of starting (check, listen, load, probe, announce) and stopping (drain, stop Triton, leave). Does not own
any part: gateway/, admin/, triton/ and local.py do their own work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from prometheus_client import CollectorRegistry

from service.admin import create_admin_app
from service.backend import Backend
from service.gateway import GatewayServer
from service.model_settings import BackendKind, ModelSettings, openmp_environment
from service.policies import ServedPolicies
from service.revision import Revision, load_revision
from service.triton.backend import TritonBackend
from service.triton.installation import find_installation
from service.triton.server import ExternalTriton, TritonProcess, TritonProcessSettings

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, by what, and where it listens. A port of 0 lets the system pick."""

    # Policy name and checkpoint directory. A name that comes twice has two revisions; the first serves, both can be
    # pinned.
    policies: tuple[tuple[str, Path], ...]
    model: ModelSettings
    backend: BackendKind = "triton"
    host: str = "127.0.0.1"
    port: int = 50051
    admin_port: int = 8080
    # host:port of a tritonserver that somebody else runs, and its model repository as seen from here.
    triton_address: str | None = None
    triton_repository: Path | None = None
    # Requests in flight get this long to end after SIGTERM.
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("no policy to serve, expected at least one")
        if (self.triton_address is None) != (self.triton_repository is None):
            raise ValueError("a Triton address and its model repository come together: one was given without the other")


class LoadingBackend(Backend, Protocol):
    """A Backend that revisions are loaded into while the service starts."""

    async def start(self) -> None: ...

    async def load(self, revision: Revision) -> None: ...


class Service:
    """Gateway, admin plane and backend. Starts once; `stop` may be called in any state."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._backend: LoadingBackend | None = None
        self._gateway: GatewayServer | None = None
        self._admin: _AdminServer | None = None

    async def start(self) -> dict[str, Any]:
        """Returns what it announces once every revision has passed its probe.

        Raises RevisionError, TritonNotFoundError, TritonStartError, BackendError or OSError; `stop` must follow.
        """
        config = self._config
        revisions = [(name, await load_revision(directory, policy=name)) for name, directory in config.policies]
        served = ServedPolicies.fixed(
            {name: [revision for other, revision in revisions if other == name] for name, _ in revisions}
        )
        self._backend = _backend(config)
        registry = CollectorRegistry()
        # Listening comes before loading: a taken port is known at once, and health answers while a large model loads.
        self._gateway = GatewayServer(policies=served, backend=self._backend, metrics_registry=registry)
        port = await self._gateway.start(config.host, config.port)
        app = create_admin_app(policies=served, backend=self._backend, metrics_registry=registry)
        self._admin = _AdminServer(app, config.host, config.admin_port)
        await self._backend.start()
        for revision in {revision.revision: revision for _, revision in revisions}.values():
            await self._backend.load(revision)
        return {
            "event": "ready",
            "grpc": f"{config.host}:{port}",
            "admin": f"http://{config.host}:{self._admin.port}",
            "backend": config.backend,
            "policies": {name: served.serving(name).revision for name in served},
        }

    async def stop(self) -> None:
        """Drains the gateway, ends the backend and with it Triton, and closes the admin plane last."""
        if self._gateway is not None:
            await self._gateway.stop(self._config.drain_s)
        if self._backend is not None:
            await self._backend.close()
        if self._admin is not None:
            await self._admin.stop()


async def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; prints a line of JSON on stdout when ready. Raises what `Service.start` does."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, number, stopping.set)
    service = Service(config)
    try:
        announcement = await _unless(stopping, service.start())
        if announcement is not None:
            print(json.dumps(announcement), flush=True)
            await stopping.wait()
    finally:
        _logger.info("stopping")
        await service.stop()
        _logger.info("stopped")


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, act: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, act)
    except NotImplementedError:  # Windows, whose event loops know no signals
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))


async def _unless(stopping: asyncio.Event, work: Any) -> dict[str, Any] | None:
    """What `work` returns, or None when it was cut short because the service is to stop."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, stopped):
            pending.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def _backend(config: ServeConfig) -> LoadingBackend:
    if config.backend == "local":
        os.environ |= openmp_environment(config.model.threads)
        from service.local import LocalBackend  # torch in this process only when the model is

        return LocalBackend(config.model)
    if config.triton_address is not None and config.triton_repository is not None:
        return TritonBackend(ExternalTriton(config.triton_address, config.triton_repository), config.model)
    process = TritonProcess(find_installation(), TritonProcessSettings(threads=config.model.threads))
    return TritonBackend(process, config.model)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to `serve`, which drains the gateway first."""
        yield


class _AdminServer:
    """The admin plane's HTTP server, listening from the moment it exists. Raises OSError when it cannot."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.port: int = self._socket.getsockname()[1]
        # Logging is set up once, by the entry point.
        self._server = _Uvicorn(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="admin")

    async def stop(self) -> None:
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._task}, timeout=5.0)
        if not done:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()
