"""Keeps this process in step with the registry: loads what the fleet wants, routes by it, reports how far it is.

Owns the backend's revisions and the served policies of one gateway. Changes nothing in the registry but this gateway's
own heartbeat and placements. A registry that does not answer changes nothing here: what was served is served on, until
the lease on beginning episodes has run out (lease.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from service.artifacts import ArtifactStore
from service.backend import Backend, BackendError
from service.memory import TooLittleMemoryError, check_fits, free_bytes, needed_bytes
from service.model_settings import ModelSettings
from service.policies import ServedPolicies, ServedPolicy
from service.registry import (
    Fleet,
    Placement,
    PolicyRecord,
    Registry,
    RegistryUnavailableError,
    RevisionRecord,
    RevisionState,
    Route,
)
from service.revision import Revision, RevisionError
from service.rollout.lease import Lease, LeaseSettings

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
Listener = Callable[[Fleet], Awaitable[None]]
_Key = tuple[str, str]  # policy, revision


class LoadingBackend(Backend, Protocol):
    """A Backend that revisions come to and go from while it answers."""

    async def start(self) -> None: ...

    async def load(self, revision: Revision) -> None:
        """Loaded, warmed, probed. Raises RevisionError for a bad checkpoint, BackendError when there is no verdict."""
        ...

    async def unload(self, revision: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class FollowerSettings:
    # Two gateways may differ for a second: half of it is left for reading what changed, and for waiting to be run.
    interval_s: float = 0.5
    # A heartbeat comes at least this often, and whenever there is something to say.
    beat_s: float = 1.0
    # A load that the backend failed, not the checkpoint, is tried again after this long.
    retry_s: float = 2.0
    # What all models together may take; None is what the machine has.
    memory_budget_bytes: int | None = None
    lease: LeaseSettings = field(default_factory=LeaseSettings)


@dataclass
class _Held:
    """One revision of one policy in this process."""

    state: RevisionState
    revision: Revision | None = None
    error: str = ""
    # What it takes of the memory, once it was let in.
    num_bytes: int = 0
    task: asyncio.Task[None] | None = None


class Follower:
    """One per process. `start` once, `wake` after a change from here, `stop` at the end."""

    def __init__(
        self,
        *,
        registry: Registry,
        backend: LoadingBackend,
        policies: ServedPolicies,
        artifacts: ArtifactStore,
        model: ModelSettings,
        gateway_id: str,
        own_process: bool,
        loads: bool = True,
        settings: FollowerSettings | None = None,
    ) -> None:
        """`own_process` says that the backend gives every revision a process.

        Without `loads` another process loads what the backend asks, and answers for the memory it takes.
        """
        self.gateway_id = gateway_id
        self.address = ""
        self._registry, self._backend, self._policies, self._artifacts = registry, backend, policies, artifacts
        self._model, self._own_process, self._loads = model, own_process, loads
        self._settings = settings or FollowerSettings()
        # Of its own, so that no slow checkpoint keeps a heartbeat waiting.
        self._database = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._held: dict[_Key, _Held] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._listeners: list[Listener] = []
        self._fleet: Fleet | None = None
        self._applied = asyncio.Condition()
        self._woken = asyncio.Event()
        self._loading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._reachable = True
        self._lease = Lease(policies, self._settings.lease)
        self._num_gateways = 1
        # What the last heartbeat said, and when the next is due.
        self._said: tuple[int, list[Placement]] | None = None
        # The same with the counts of what is in progress, for which no heartbeat comes early.
        self._written: tuple[Placement, ...] = ()
        self._next_beat_s = 0.0

    @property
    def fleet(self) -> Fleet | None:
        """What this process routes by; None before the registry was first read."""
        return self._fleet

    @property
    def reachable(self) -> bool:
        """Whether the registry answered when it was last asked."""
        return self._reachable

    @property
    def lease_s(self) -> float | None:
        """For how long it begins episodes if it hears nothing more; None for as long as it likes."""
        return self._lease.left_s

    def listen(self, listener: Listener) -> None:
        """`listener` gets every new state of the fleet, before this process says that it routes by it."""
        self._listeners.append(listener)

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(
                gateway_id=self.gateway_id,
                policy=policy,
                revision=revision,
                state=held.state,
                error=held.error,
                num_in_progress=self._policies.num_in_progress(policy, revision),
            )
            for (policy, revision), held in self._held.items()
        )

    async def start(self) -> None:
        """Reads the registry once, then follows it. Raises RegistryUnavailableError."""
        await self._follow()
        self._task = asyncio.create_task(self._run(), name="fleet-follower")

    def wake(self) -> None:
        """The registry was changed from here: no need to wait for the next look."""
        self._woken.set()

    async def applied(self, generation: int, *, timeout_s: float) -> None:
        """Returns once this process routes by `generation`, or a later one. Raises TimeoutError."""
        self.wake()
        async with asyncio.timeout(timeout_s), self._applied:
            await self._applied.wait_for(lambda: self._fleet is not None and self._fleet.generation >= generation)

    async def settled(self, *, timeout_s: float | None = None) -> None:
        """Waits until every revision that the fleet wanted when it was last read is here, or has failed to be.

        At most `timeout_s`, which is no error: loading goes on.
        """
        if tasks := [held.task for held in self._held.values() if held.task is not None]:
            done, _ = await asyncio.wait(tasks, timeout=timeout_s)
            for task in done:
                task.result()

    async def stop(self) -> None:
        """Leaves the fleet. The backend keeps what it has: whoever owns it closes it."""
        self._lease.stop()
        tasks = [held.task for held in self._held.values() if held.task is not None]
        tasks += [*self._unloading, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self.ask(partial(self._registry.leave, self.gateway_id))
        except RegistryUnavailableError as error:
            _logger.warning("left without a word", extra={"fields": {"error": str(error)}})
        self._database.shutdown(wait=False, cancel_futures=True)

    async def ask(self, question: Callable[[], _Result]) -> _Result:
        """Runs a call of the registry in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._database, question)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.interval_s):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                await self._follow()
            except RegistryUnavailableError as error:
                self._note_reachable(False, str(error))
            except Exception:  # the edge: following goes on whatever one round met
                _logger.exception("following the registry failed")

    async def _follow(self) -> None:
        known, asked_s = self._fleet.generation if self._fleet else -1, time.monotonic()
        generation = await self._beat(known)
        self._note_reachable(True)
        if generation != known:
            fleet = await self.ask(self._registry.fleet)
            for listener in self._listeners:
                await listener(fleet)
            self._reconcile(fleet)
            async with self._applied:
                self._fleet = fleet
                self._applied.notify_all()
            # Said at once: others wait for this gateway to route by it.
            self._woken.set()
        assert self._fleet is not None
        self._lease.renew(asked_s, num_gateways=self._num_gateways, switching=self._fleet.switching)

    async def _beat(self, known: int) -> int:
        """The fleet's generation. Only looks, while there is nothing to say and the last heartbeat is young."""
        placements = self.placements()
        said = known, [replace(each, num_in_progress=min(1, each.num_in_progress)) for each in placements]
        now_s = asyncio.get_running_loop().time()
        unchanged = said == self._said
        if unchanged and now_s < self._next_beat_s:
            return await self.ask(self._registry.generation)
        written = unchanged and placements == self._written
        heard = await self.ask(partial(self._registry.touch, self.gateway_id)) if written else None
        if heard is None:  # or others took this gateway for lost
            beat = partial(
                self._registry.beat, self.gateway_id, address=self.address, generation=known, placements=placements
            )
            heard = await self.ask(beat)
        self._said, self._written, self._next_beat_s = said, placements, now_s + self._settings.beat_s
        self._num_gateways = heard.num_gateways
        return heard.generation

    def _note_reachable(self, reachable: bool, error: str = "") -> None:
        if reachable is not self._reachable:
            self._reachable = reachable
            level, event = (logging.INFO, "registry is back") if reachable else (logging.ERROR, "registry lost")
            _logger.log(level, event, extra={"fields": {"error": error}})

    def _reconcile(self, fleet: Fleet) -> None:
        """Starts and ends what is needed, and routes by what is there."""
        wanted = {
            (policy.name, record.revision): record
            for policy in fleet.policies.values()
            for record in policy.revisions.values()
            if record.state.wanted
        }
        for key, record in wanted.items():
            held = self._held.get(key)
            # One that failed here is tried again when the fleet loads it anew.
            again = held is not None and held.state is RevisionState.FAILED and record.state is RevisionState.LOADING
            if held is None or again:
                self._begin(key, record)
            elif record.state is RevisionState.DRAINING and _moves_episodes(fleet, record):
                self._policies.episodes.release(*key)
        self._route(fleet)
        for key in [key for key in self._held if key not in wanted]:
            self._end(key)

    def _begin(self, key: _Key, record: RevisionRecord) -> None:
        held = _Held(state=RevisionState.LOADING)
        self._held[key] = held
        held.task = asyncio.create_task(self._load(key, record, held), name=f"load {record.revision}")

    async def _load(self, key: _Key, record: RevisionRecord, held: _Held) -> None:
        """Fetch, check, load, warm, probe; failing leaves everything else as it is, and says why."""
        try:
            while True:
                try:
                    held.revision = await asyncio.to_thread(
                        self._artifacts.open, record.policy, record.location, manifest_sha256=record.manifest_sha256
                    )
                    self._changed()
                    # One at a time: two that load at once would both believe that they fit.
                    async with self._loading if self._loads else nullcontext():
                        await self._into_backend(record, held)
                    break
                except BackendError as error:
                    # No verdict on the checkpoint. Nobody waits for a revision that used to serve but robots.
                    if not record.state.answers:
                        raise
                    _logger.error("load failed", extra={"fields": {"revision": record.revision, "error": str(error)}})
                    await asyncio.sleep(self._settings.retry_s)
        except (RevisionError, BackendError, TooLittleMemoryError, OSError) as error:
            _logger.error("revision failed", extra={"fields": {"revision": record.revision, "error": str(error)}})
            held.state, held.error = RevisionState.FAILED, str(error)
        else:
            held.state = RevisionState.READY
        self._changed()

    async def _into_backend(self, record: RevisionRecord, held: _Held) -> None:
        assert held.revision is not None
        if not await self._backend.ready(record.revision):
            if self._loads:
                needed = needed_bytes(record.num_bytes, own_process=self._own_process)
                check_fits(needed, await self._free_bytes())
                held.num_bytes = needed
            held.state = RevisionState.WARMING
            self._changed()
            await self._backend.load(held.revision)

    async def _free_bytes(self) -> int | None:
        """What the machine has left, and what the operator left to models, whichever is less."""
        free = await asyncio.to_thread(free_bytes, self._model.device)
        if self._settings.memory_budget_bytes is None:
            return free
        left = self._settings.memory_budget_bytes - sum(held.num_bytes for held in self._held.values())
        return left if free is None else min(free, left)

    def _changed(self) -> None:
        """Something is further here than the fleet knows."""
        if self._fleet is not None:
            self._route(self._fleet)
        self._woken.set()

    def _end(self, key: _Key) -> None:
        held = self._held.pop(key)
        if held.task is not None:
            held.task.cancel()
        policy, revision = key
        self._policies.episodes.release(policy, revision)
        if not any(name == revision for _, name in self._held):
            task = asyncio.create_task(self._unload(revision, held.task), name=f"unload {revision}")
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def _unload(self, revision: str, loading: asyncio.Task[None] | None) -> None:
        if loading is not None:
            await asyncio.gather(loading, return_exceptions=True)
        async with self._loading:
            # Wanted again in the meantime: it stays.
            if not any(name == revision for _, name in self._held):
                await self._backend.unload(revision)

    def _route(self, fleet: Fleet) -> None:
        served = {}
        for policy in fleet.policies.values():
            if (route := self._served(policy)) is not None:
                served[policy.name] = route
        missing = [policy for name, policy in fleet.policies.items() if name not in served]
        self._policies.apply(
            served,
            waiting=[policy.name for policy in missing if policy.route is not None],
            unpromoted=[policy.name for policy in missing if policy.route is None],
        )

    def _served(self, policy: PolicyRecord) -> ServedPolicy | None:
        """What this process has of a policy; None while it knows not even what its stable revision looks like."""
        revisions = {
            name: held.revision
            for (owner, name), held in self._held.items()
            if owner == policy.name and held.revision is not None and held.state is not RevisionState.FAILED
        }
        if policy.route is None or policy.route.stable not in revisions:
            return None
        return ServedPolicy(
            revisions=revisions, shares=self._shares(policy.name, policy.route), shadow=policy.route.shadow
        )

    def _state(self, policy: str, revision: str) -> RevisionState | None:
        held = self._held.get((policy, revision))
        return held.state if held is not None else None

    def _shares(self, policy: str, route: Route) -> tuple[tuple[str, float], ...]:
        """The route's shares among what is ready here; while nothing is, the stable revision stands for all."""
        ready = [(name, share) for name, share in route.shares if self._state(policy, name) is RevisionState.READY]
        total = sum(share for _, share in ready)
        if not total or ready[0][0] != route.stable:
            return ((route.stable, 1.0),)
        return tuple((name, share / total) for name, share in ready)


def _moves_episodes(fleet: Fleet, record: RevisionRecord) -> bool:
    route = fleet.policies[record.policy].route
    return route is not None and route.move_episodes
