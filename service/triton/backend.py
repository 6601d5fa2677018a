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
from service.triton.client import ModelGoneError, TritonClient
from service.triton.http import TritonConnectionError, TritonConnections
from service.triton.models import OwnModels, TritonModels
from service.triton.repository import model_name
from service.triton.server import TritonServer, TritonStartError

_logger = logging.getLogger(__name__)
# What is not answered within this long by a process that has nothing to do for it, hangs.
_LIVE_TIMEOUT_S = 5.0


class RevisionState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    # Triton, or the process behind this model, is being restarted.
    RECOVERING = "recovering"
    # The checkpoint was refused after a restart; it stays refused until Triton or the service starts again.
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

    def __init__(self, revision: Revision, owner: str, probe: tuple[ProbeCase, ...]) -> None:
        self.revision = revision
        self.name = model_name(revision.revision, owner)
        self.probe = probe
        self.state = RevisionState.LOADING
        self.answered_at_s = 0.0
        # Brings it back after it was lost. How often it could not, since it was last ready or Triton started.
        self.recovery: asyncio.Task[None] | None = None
        self.num_failures = 0


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
        self._loading: TritonModels = models or OwnModels(
            server.repository, settings, shares_memory=server.shares_memory
        )
        self._supervision = supervision or SupervisionSettings()
        self._models: dict[str, _Model] = {}
        self._client: TritonClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Starts Triton and its supervision. Raises TritonStartError."""
        await self._server.start()
        self._client = self._new_client()
        self._run(self._supervise(), "triton supervision")
        self._run(self._heartbeat(), "triton heartbeat")

    async def load(self, revision: Revision) -> None:
        """Returns once the revision's probe has passed through Triton.

        Raises RevisionError with what is wrong with the checkpoint, BackendError when Triton gave no verdict.
        """
        model = _Model(revision, self._server.owner, await asyncio.to_thread(read_probe, revision))
        if (known := self._models.get(revision.revision)) is not None:
            await self._stop_recovery(known)
        self._models[revision.revision] = model
        try:
            await self._bring_up(self._connected(), model)
        except BaseException:
            if known is not None:
                # Somebody is served by it as soon as it is back.
                self._models[revision.revision] = known
                if self._client is not None:
                    self._recover(self._client, known)
                raise
            del self._models[revision.revision]
            # Triton has it when it was loaded and failed its probe, and will when nobody waits for the load any more.
            await self._loading.unload(self._client, model.name)
            raise

    async def unload(self, revision: str) -> None:
        """Gives its memory back; who asks for it now finds it unavailable. One that is not loaded is no error."""
        model = self._models.pop(revision, None)
        if model is None:
            return
        # Whatever ends badly from here on is no death to recover from.
        model.state = RevisionState.RECOVERING
        await self._stop_recovery(model)
        await self._loading.unload(self._client, model.name)

    def look_at(self, revision: str) -> None:
        """Somebody found its model dead: it is probed now, not with the next heartbeat."""
        model = self._models.get(revision)
        if model is not None and model.state is RevisionState.READY:
            self._run(self._beat(model), f"look at {revision}")

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
        for model in self._models.values():
            await self._loading.unload(self._client, model.name)
        if self._client is not None:
            self._client.close()
            self._client = None
        await self._server.stop()

    async def _infer(self, model: _Model, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        client = self._connected()
        try:
            chunk = await client.infer(model.name, request, timeout_s=timeout_s)
        except ModelGoneError as error:
            if model.state is RevisionState.READY and client is self._client:
                _log_error("model gone", model, error)
                self._recover(client, model)
            raise
        model.answered_at_s = time.monotonic()
        return chunk

    async def _bring_up(self, client: TritonClient, model: _Model) -> None:
        """Load, then probe, then ready."""
        started_s = time.monotonic()
        await self._loading.load(
            client, model.name, model.revision, model.probe[0].request, timeout_s=self._supervision.load_timeout_s
        )
        for case in model.probe:
            chunk = await client.infer(model.name, case.request, timeout_s=self._supervision.probe_timeout_s)
            try:
                case.check(chunk, dtype=self._settings.dtype)
            except ProbeError as error:
                raise RevisionError(f"{error} (through Triton)") from None
        model.answered_at_s = time.monotonic()
        model.state, model.num_failures = RevisionState.READY, 0
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
        """One attempt to have Triton back; false when it did not start. Each revision then comes back by itself."""
        await asyncio.sleep(self._backoff_s(failures))
        try:
            await self._server.start()
        except (TritonStartError, OSError) as error:
            _logger.error("triton restart failed", extra={"fields": {"error": str(error)}})
            return False
        self._client = client = self._new_client()
        for model in self._models.values():
            # Whoever loads one for the first time is told that it failed.
            if model.state is not RevisionState.LOADING:
                model.num_failures = 0
                self._recover(client, model, anew=True)
        return True

    def _recover(self, client: TritonClient, model: _Model, *, anew: bool = False) -> None:
        """Brings one model back; `anew` in a Triton that has just started."""
        model.state = RevisionState.RECOVERING
        if model.recovery is not None:
            model.recovery.cancel()
        work = self._bring_back(client, model, anew=anew)
        model.recovery = self._run(work, f"bring back {model.revision.revision}")

    async def _bring_back(self, client: TritonClient, model: _Model, *, anew: bool) -> None:
        """Tries until it is ready, or refused, or Triton is given up; the other models are served meanwhile."""
        refused = False
        while client is self._client:
            try:
                await self._server.end_model(model.name)
                await self._bring_up(client, model)
                return
            except RevisionError as error:
                _log_error("revision refused", model, error)
                if refused:
                    model.state = RevisionState.REFUSED
                    return
                # What was served is refused at the second word, which is a new Triton's where that costs nobody.
                refused, in_doubt = True, not anew
            except BackendError as error:
                _log_error("model recovery failed", model, error)
                in_doubt = True
            model.num_failures += 1
            if in_doubt and not await self._serves_others(client, but_for=model):
                await self._give_up(client)
                return
            await asyncio.sleep(self._backoff_s(model.num_failures))

    async def _serves_others(self, client: TritonClient, *, but_for: _Model) -> bool:
        """Whether Triton answers, and serves others or may still: starting it again would cost them their chunks."""
        for model in self._models.values():
            hopeful = model.state in (RevisionState.READY, RevisionState.LOADING) or (
                model.state is RevisionState.RECOVERING and not model.num_failures
            )
            if hopeful and model is not but_for:
                return await client.is_live(timeout_s=_LIVE_TIMEOUT_S)
        return False

    async def _give_up(self, client: TritonClient) -> None:
        """Supervision starts another Triton, unless it has done so already."""
        if client is self._client:
            await self._server.abandon()

    async def _stop_recovery(self, model: _Model) -> None:
        if model.recovery is not None:
            model.recovery.cancel()
            await asyncio.wait({model.recovery})

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._supervision.heartbeat_interval_s)
            for model in list(self._models.values()):
                idle_s = time.monotonic() - model.answered_at_s
                if model.state is RevisionState.READY and idle_s >= self._supervision.heartbeat_interval_s:
                    await self._beat(model)

    async def _beat(self, model: _Model) -> None:
        client = self._client
        try:
            await self._infer(model, model.probe[0].request, timeout_s=self._supervision.probe_timeout_s)
        except BackendUnavailableError:
            # Noticed elsewhere: the model is being recovered or the server has gone.
            return
        except BackendError as error:
            if model.state is not RevisionState.READY or client is None or client is not self._client:
                return
            _log_error("heartbeat failed", model, error)
            if not await self._serves_others(client, but_for=model):
                await self._give_up(client)
            elif model.state is RevisionState.READY and client is self._client:
                self._recover(client, model)

    def _disconnect(self) -> None:
        """Whatever is in progress ends as unavailable."""
        for model in self._models.values():
            if model.state is not RevisionState.LOADING:
                model.state = RevisionState.RECOVERING
            if model.recovery is not None:
                model.recovery.cancel()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _new_client(self) -> TritonClient:
        server = self._server
        return TritonClient(
            server.address,
            server.control_address,
            control_key=server.control_key,
            shares_memory=server.shares_memory,
        )

    def _connected(self) -> TritonClient:
        if self._client is None:
            raise BackendUnavailableError("Triton is restarting", retry_after_s=self._supervision.retry_after_s)
        return self._client

    def _backoff_s(self, failures: int) -> float:
        if failures == 0:
            return 0.0
        return min(self._supervision.first_backoff_s * 2 ** (failures - 1), self._supervision.last_backoff_s)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.critical("supervision failed", exc_info=error)


def _log_error(event: str, model: _Model, error: Exception) -> None:
    _logger.error(event, extra={"fields": {"revision": model.revision.revision, "error": str(error)}})
