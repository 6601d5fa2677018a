"""The backend that robots get: revisions in a supervised tritonserver.

Owns each revision's state, the probe that gates it, and what happens when Triton or the process behind one model dies.
Does not own the process itself (server.py), how a model comes into it (models.py) or the messages (client.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from service.backend import BackendChunk, BackendError, BackendRequest, BackendUnavailableError
from service.model_settings import ModelSettings
from service.probe import ProbeCase, ProbeError, read_probe
from service.revision import Revision, RevisionError
from service.triton.client import ModelDeadError, TritonClient
from service.triton.http import TritonConnectionError, TritonConnections
from service.triton.models import OwnModels, TritonModels
from service.triton.repository import model_name
from service.triton.server import TritonServer, TritonStartError

_logger = logging.getLogger(__name__)


class RevisionState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    # Triton, or the process behind this model, is being restarted.
    RECOVERING = "recovering"
    # The checkpoint was refused after a restart; it stays refused until the service starts again.
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class SupervisionSettings:
    load_timeout_s: float = 120.0
    probe_timeout_s: float = 30.0
    # A revision that nobody has asked for this long is probed, so that a death is noticed before a robot does.
    heartbeat_interval_s: float = 5.0
    # What a caller is told to wait while Triton restarts.
    retry_after_s: float = 1.0
    # Doubles from the first to the last with every failure in a row; the first restart is immediate.
    first_backoff_s: float = 0.5
    last_backoff_s: float = 30.0
    # A tritonserver that lived this long did not fail because of its start.
    stable_after_s: float = 60.0


class _Model:
    """One revision inside Triton."""

    def __init__(self, revision: Revision, probe: tuple[ProbeCase, ...]) -> None:
        self.revision = revision
        self.name = model_name(revision.revision)
        self.probe = probe
        self.state = RevisionState.LOADING
        self.answered_at_s = 0.0


class TritonBackend:
    """A Backend on Triton. `start`, then `load` what is to be served, then `predict`; `close` ends Triton as well."""

    def __init__(
        self,
        server: TritonServer,
        settings: ModelSettings,
        supervision: SupervisionSettings | None = None,
        *,
        models: TritonModels | None = None,
    ) -> None:
        """Without `models` it loads them itself."""
        self._server = server
        self._settings = settings
        self._loading: TritonModels = models or OwnModels(server.repository, settings)
        self._supervision = supervision or SupervisionSettings()
        self._models: dict[str, _Model] = {}
        self._client: TritonClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Starts Triton and its supervision. Raises TritonStartError."""
        await self._server.start()
        self._client = TritonClient(self._server.address, self._server.control_address)
        self._run(self._supervise())
        self._run(self._heartbeat())

    async def load(self, revision: Revision) -> None:
        """Returns once the revision's probe has passed through Triton.

        Raises RevisionError with what is wrong with the checkpoint, BackendError when Triton gave no verdict.
        """
        model = _Model(revision, await asyncio.to_thread(read_probe, revision))
        self._models[revision.revision] = model
        try:
            await self._bring_up(self._connected(), model)
        except BaseException:
            del self._models[revision.revision]
            self._loading.discard(revision.revision)
            raise

    async def unload(self, revision: str) -> None:
        """Gives its memory back; who asks for it now finds it unavailable. One that is not loaded is no error."""
        model = self._models.pop(revision, None)
        if model is None:
            return
        # Whatever ends badly from here on is no death to recover from.
        model.state = RevisionState.RECOVERING
        if self._client is not None:
            await self._loading.unload(self._client, revision)

    def look_at(self, revision: str) -> None:
        """Somebody found its model dead: it is probed now, not with the next heartbeat."""
        model = self._models.get(revision)
        if model is not None and model.state is RevisionState.READY:
            self._run(self._beat(model))

    def capacity(self, revision: str) -> int:
        return self._settings.capacity

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        model = self._models.get(revision)
        if model is None or model.state is not RevisionState.READY:
            state = "not loaded" if model is None else str(model.state)
            raise BackendUnavailableError(
                f"revision {revision} is {state}", retry_after_s=self._supervision.retry_after_s
            )
        try:
            return await self._infer(model, request, timeout_s=timeout_s)
        except BackendUnavailableError as error:
            raise BackendUnavailableError(str(error), retry_after_s=self._supervision.retry_after_s) from error

    async def ready(self, revision: str) -> bool:
        model = self._models.get(revision)
        return model is not None and model.state is RevisionState.READY

    async def metrics(self, *, timeout_s: float) -> bytes:
        """Triton's own, in Prometheus' text format. Raises BackendUnavailableError."""
        address = self._server.metrics_address
        if address is None:
            raise BackendUnavailableError("where this Triton's metrics are is known to its owner alone")
        connections = TritonConnections(address)
        try:
            async with asyncio.timeout(timeout_s):
                return (await connections.ask("GET", "/metrics")).content
        except (TritonConnectionError, TimeoutError) as error:
            raise BackendUnavailableError(f"Triton's metrics at {address}: {error!r}") from None
        finally:
            connections.close()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in self._models.values():
            model.state = RevisionState.RECOVERING
            if self._client is not None:
                await self._loading.unload(self._client, model.revision.revision)
        if self._client is not None:
            self._client.close()
            self._client = None
        await self._server.stop()

    async def _infer(self, model: _Model, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        try:
            chunk = await self._connected().infer(model.name, request, timeout_s=timeout_s)
        except ModelDeadError as error:
            if model.state is RevisionState.READY:
                _logger.error(
                    "model died", extra={"fields": {"revision": model.revision.revision, "error": str(error)}}
                )
                model.state = RevisionState.RECOVERING
                self._run(self._recover(model))
            raise
        model.answered_at_s = time.monotonic()
        return chunk

    async def _bring_up(self, client: TritonClient, model: _Model) -> None:
        """Load, then probe, then ready."""
        started_s = time.monotonic()
        await self._loading.load(
            client, model.revision, model.probe[0].request, timeout_s=self._supervision.load_timeout_s
        )
        for case in model.probe:
            chunk = await client.infer(model.name, case.request, timeout_s=self._supervision.probe_timeout_s)
            try:
                case.check(chunk, dtype=self._settings.dtype)
            except ProbeError as error:
                raise RevisionError(f"{error} (through Triton)") from None
        model.answered_at_s = time.monotonic()
        model.state = RevisionState.READY
        seconds = round(model.answered_at_s - started_s, 3)
        _logger.info("revision ready", extra={"fields": {"revision": model.revision.revision, "load_s": seconds}})

    async def _supervise(self) -> None:
        failures = 0
        while True:
            started_s = time.monotonic()
            reason = await self._server.wait_lost()
            _logger.error("triton lost", extra={"fields": {"reason": reason}})
            self._disconnect()
            if time.monotonic() - started_s >= self._supervision.stable_after_s:
                failures = 0
            while not await self._restart(failures):
                failures += 1
            failures += 1

    async def _restart(self, failures: int) -> bool:
        """One attempt to have Triton and every revision back; false when Triton did not hold."""
        await asyncio.sleep(self._backoff_s(failures))
        try:
            await self._server.start()
            client = TritonClient(self._server.address, self._server.control_address)
            self._client = client
            for model in list(self._models.values()):
                await self._bring_up_again(client, model)
        except (TritonStartError, BackendError, OSError) as error:
            _logger.error("triton restart failed", extra={"fields": {"error": str(error)}})
            self._disconnect()
            return False
        return True

    async def _bring_up_again(self, client: TritonClient, model: _Model) -> None:
        try:
            await self._bring_up(client, model)
        except RevisionError as error:
            model.state = RevisionState.REFUSED
            _logger.error(
                "revision refused", extra={"fields": {"revision": model.revision.revision, "error": str(error)}}
            )

    async def _recover(self, model: _Model) -> None:
        """Loads one model again; when that fails, the whole server is given up and supervision restarts it."""
        client = self._client
        if client is None:
            return
        try:
            await self._bring_up(client, model)
        except (BackendError, RevisionError) as error:
            if client is self._client:
                _logger.error("model recovery failed", extra={"fields": {"error": str(error)}})
                await self._server.abandon()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._supervision.heartbeat_interval_s)
            for model in list(self._models.values()):
                idle_s = time.monotonic() - model.answered_at_s
                if model.state is RevisionState.READY and idle_s >= self._supervision.heartbeat_interval_s:
                    await self._beat(model)

    async def _beat(self, model: _Model) -> None:
        try:
            await self._infer(model, model.probe[0].request, timeout_s=self._supervision.probe_timeout_s)
        except BackendUnavailableError:
            # Noticed elsewhere: the model is being recovered or the server has gone.
            return
        except BackendError as error:
            if model.state is not RevisionState.READY:
                return
            _logger.error(
                "heartbeat failed", extra={"fields": {"revision": model.revision.revision, "error": str(error)}}
            )
            await self._server.abandon()

    def _disconnect(self) -> None:
        """Whatever is in progress ends as unavailable."""
        for model in self._models.values():
            model.state = RevisionState.RECOVERING
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> TritonClient:
        if self._client is None:
            raise BackendUnavailableError("Triton is restarting", retry_after_s=self._supervision.retry_after_s)
        return self._client

    def _backoff_s(self, failures: int) -> float:
        if failures == 0:
            return 0.0
        return min(self._supervision.first_backoff_s * 2 ** (failures - 1), self._supervision.last_backoff_s)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.critical("supervision failed", exc_info=error)
