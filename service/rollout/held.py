"""The revisions that this process has in its backend, or is about to have.

Owns loading them, one at a time and only where they fit, trying again what robots wait for, probing again what is
ready, and unloading. Does not own which are wanted, nor what is routed to them (follower.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Protocol

from service.artifacts import ArtifactStore
from service.backend import Backend, BackendError
from service.memory import TooLittleMemoryError, check_fits, free_bytes, needed_bytes
from service.model_settings import ModelSettings
from service.registry import RevisionRecord, RevisionState
from service.revision import Revision, RevisionError
from service.rollout.probing import probe_again

_logger = logging.getLogger(__name__)
# Policy, revision.
Key = tuple[str, str]


class LoadingBackend(Backend, Protocol):
    """A Backend that revisions come to and go from while it answers."""

    async def start(self) -> None: ...

    async def load(self, revision: Revision) -> None:
        """Loaded, warmed, probed. Raises RevisionError for a bad checkpoint, BackendError when there is no verdict."""
        ...

    async def unload(self, revision: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    # What robots wait for is tried again when it failed: after so long, then doubling.
    first_retry_s: float = 2.0
    last_retry_s: float = 60.0
    # Of one request of a probe that is asked again.
    probe_timeout_s: float = 30.0
    # What all models together may take; None is what the machine has.
    memory_budget_bytes: int | None = None


@dataclass(kw_only=True)
class Held:
    """One revision of one policy in this process."""

    # As the fleet wants it.
    record: RevisionRecord
    state: RevisionState = RevisionState.LOADING
    # The attempt of the record that state and error are of.
    attempt: int = 0
    # Once its files were read and checked.
    revision: Revision | None = None
    error: str = ""
    task: asyncio.Task[None] | None = None
    # The fleet asked for another attempt.
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    # It is ready, or there is a verdict that it cannot be.
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_ready(self) -> bool:
        return self.state is RevisionState.READY


class HeldRevisions(Mapping[Key, Held]):
    """One per process; belongs to its event loop."""

    def __init__(
        self,
        *,
        backend: LoadingBackend,
        artifacts: ArtifactStore,
        model: ModelSettings,
        own_process: bool,
        loads: bool,
        settings: LoadingSettings,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever one is further than it was. The others are Follower's."""
        self._backend, self._artifacts, self._model = backend, artifacts, model
        self._own_process, self._loads, self._settings, self._changed = own_process, loads, settings, changed
        self._held: dict[Key, Held] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Condition()
        # By digest, what the backend holds takes of the memory: from before its load until its unload has returned.
        self._num_bytes: dict[str, int] = {}

    def __getitem__(self, key: Key) -> Held:
        return self._held[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def have(self, record: RevisionRecord) -> None:
        """Sees to it that it is loaded, tried again or proven anew, as the fleet wants it."""
        held = self._held.setdefault((record.policy, record.revision), Held(record=record))
        held.record = record
        is_asked = record.attempt > held.attempt
        if held.task is not None and not held.task.done():
            if is_asked:
                held.asked.set()
            return
        gave_up = held.state is RevisionState.FAILED and record.state.answers
        if held.task is None or is_asked or gave_up:
            held.task = asyncio.create_task(self._prove(held), name=f"load {record.revision}")

    def end(self, key: Key) -> None:
        """Gives it up, whatever it is doing; its memory is free once no policy here has it."""
        held, revision = self._held.pop(key), key[1]
        held.settled.set()
        if held.task is not None:
            held.task.cancel()
        if not self._is_held(revision):
            task = asyncio.create_task(self._unload(revision, held.task), name=f"unload {revision}")
            self._unloading.add(task)

    async def settled(self, *, timeout_s: float) -> None:
        """Returns once each is ready or cannot be; after `timeout_s` in any case, and loading goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for held in [*self._held.values()]:
                    await held.settled.wait()

    async def stop(self) -> None:
        """The backend keeps what it has: whoever owns it closes it."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        tasks += self._unloading
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _prove(self, held: Held) -> None:
        """Loads what is not here, probes what is; goes on trying for as long as robots wait for it."""
        failures = 0
        while True:
            held.asked.clear()
            attempt = held.record.attempt
            if held.is_ready and held.record.state.answers:
                held.error = await self._probed(held)
            else:
                held.state, held.attempt, held.revision, held.error = RevisionState.LOADING, attempt, None, ""
                self._changed()
                held.error = await self._loaded(held)
                held.state = RevisionState.FAILED if held.error else RevisionState.READY
            held.attempt = attempt
            is_over = held.is_ready or not held.record.state.answers
            if is_over:
                held.settled.set()
            self._changed()
            if held.record.attempt > attempt:
                failures = 0
                continue
            if is_over:
                return
            failures += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(self._retry_s(failures)):
                    await held.asked.wait()

    def _retry_s(self, failures: int) -> float:
        return min(self._settings.first_retry_s * 2 ** (failures - 1), self._settings.last_retry_s)

    async def _loaded(self, held: Held) -> str:
        """Fetch, check, load, warm, probe; failing leaves everything else as it is. Why it failed, or nothing."""
        record = held.record
        try:
            held.revision = await self._artifacts.opened(
                record.policy, record.location, manifest_sha256=record.manifest_sha256
            )
            self._changed()
            # One at a time: two that load at once would both believe that they fit.
            async with self._loading if self._loads else nullcontext():
                await self._into_backend(held, held.revision)
            return ""
        except (RevisionError, BackendError, TooLittleMemoryError, OSError) as error:
            _logger.error("revision failed", extra={"fields": {"revision": record.revision, "error": str(error)}})
            failure, is_verdict = str(error), not isinstance(error, BackendError)
        except Exception as error:  # the edge: nobody else looks at this task, and others wait for what became of it
            _logger.exception("loading failed", extra={"fields": {"revision": record.revision}})
            failure, is_verdict = f"loading failed: {error!r}", True
        if is_verdict:
            held.settled.set()
        return failure

    async def _into_backend(self, held: Held, revision: Revision) -> None:
        digest, needed = revision.revision, needed_bytes(held.record.num_bytes, own_process=self._own_process)
        if self._loads:
            # What goes makes room first.
            await self._loading.wait_for(lambda: not self._unloading)
        if await self._backend.ready(digest):
            self._num_bytes.setdefault(digest, needed)
            return
        if self._loads:
            check_fits(needed, await self._free_bytes(but=digest))
        self._num_bytes[digest] = needed
        held.state = RevisionState.WARMING
        self._changed()
        try:
            await self._backend.load(revision)
        except Exception:
            # What another policy has ready, the backend keeps and brings back.
            if not any(other.is_ready for (_, name), other in self._held.items() if name == digest):
                self._num_bytes.pop(digest, None)
            raise

    async def _probed(self, held: Held) -> str:
        """What is wrong with the answers of what is ready here, or nothing. It stays ready: robots play by it."""
        assert held.revision is not None
        try:
            await probe_again(self._backend, held.revision, self._model, timeout_s=self._settings.probe_timeout_s)
            return ""
        except (RevisionError, BackendError) as error:
            failure = str(error)
        except Exception as error:  # the edge, as for loading
            _logger.exception("probing failed", extra={"fields": {"revision": held.record.revision}})
            failure = f"probing failed: {error!r}"
        fields = {"revision": held.record.revision, "error": failure}
        _logger.error("a revision that is ready failed its probe", extra={"fields": fields})
        return failure

    async def _free_bytes(self, *, but: str) -> int | None:
        """What the machine has left, and what the operator left to models other than `but`, whichever is less."""
        free = await asyncio.to_thread(free_bytes, self._model.device)
        if self._settings.memory_budget_bytes is None:
            return free
        taken = sum(num_bytes for digest, num_bytes in self._num_bytes.items() if digest != but)
        left = self._settings.memory_budget_bytes - taken
        return left if free is None else min(free, left)

    async def _unload(self, revision: str, loading: asyncio.Task[None] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if loading is not None:
            await asyncio.gather(loading, return_exceptions=True)
        async with self._loading:
            try:
                # Wanted again in the meantime: it stays.
                if not self._is_held(revision):
                    await self._backend.unload(revision)
                    self._num_bytes.pop(revision, None)
            finally:
                self._unloading.discard(task)
                self._loading.notify_all()

    def _is_held(self, revision: str) -> bool:
        return any(name == revision for _, name in self._held)
