"""Keeps this process in step with the registry: has loaded what the fleet wants, routes by it, reports how far it is.

Owns the served policies of one gateway. Changes nothing in the registry but this gateway's own heartbeat and
placements. A registry that does not answer changes nothing here: what was served is served on, until the lease on
beginning episodes has run out (lease.py). Does not own loading (held.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from service.artifacts import ArtifactStore
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
    Tally,
)
from service.revision import Revision
from service.rollout.held import HeldRevisions, LoadingBackend, LoadingSettings
from service.rollout.lease import Lease, LeaseSettings
from service.rollout.tallies import Tallies

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
Listener = Callable[[Fleet], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class FollowerSettings:
    # Two gateways may differ for a second: half of it is left for reading what changed, and for waiting to be run.
    interval_s: float = 0.5
    # A heartbeat comes at least this often, and whenever there is something to say.
    beat_s: float = 1.0
    loading: LoadingSettings = field(default_factory=LoadingSettings)
    lease: LeaseSettings = field(default_factory=LeaseSettings)

    def check_lost_after(self, gateway_lost_s: float) -> None:
        """Whoever no longer waits for a gateway relies on its lease having run out. Raises ValueError."""
        # The lease is renewed by every answer, and heartbeats are counted.
        if self.lease.lease_s + self.beat_s >= gateway_lost_s:
            raise ValueError(
                f"lease_s is {self.lease.lease_s:g} and beat_s {self.beat_s:g}, expected less together than "
                f"gateway_lost_s, which is {gateway_lost_s:g}: a gateway that counts as lost would begin episodes"
            )


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
        tallies: Tallies | None = None,
        settings: FollowerSettings | None = None,
    ) -> None:
        """`own_process` says that the backend gives every revision a process.

        Without `loads` another process loads what the backend asks, and answers for the memory it takes. `tallies` are
        what a guard judges by; None where nothing is counted.
        """
        self.gateway_id = gateway_id
        self.address = ""
        self._registry, self._policies, self._artifacts, self._loads = registry, policies, artifacts, loads
        self._tallies = tallies
        self._settings = settings = settings or FollowerSettings()
        # Of its own, so that no slow checkpoint keeps a heartbeat waiting.
        self._database = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._held = HeldRevisions(
            backend=backend,
            artifacts=artifacts,
            model=model,
            own_process=own_process,
            loads=loads,
            settings=settings.loading,
            changed=self._changed,
        )
        self._forgetting: set[asyncio.Task[None]] = set()
        # Policy and revision of what drains and has no episodes: they were told to go on with what serves.
        self._left: set[tuple[str, str]] = set()
        self._listeners: list[Listener] = []
        self._fleet: Fleet | None = None
        self._applied = asyncio.Condition()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Of the monotonic clock; never, while it does not answer.
        self._reachable_since_s = time.monotonic()
        self._lease = Lease(policies, self._settings.lease)
        self._num_gateways = 1
        # What the last heartbeat said, and when the next is due.
        self._said: tuple[int, list[Placement]] | None = None
        # The same with the counts, of what is in progress and for a guard, for which no heartbeat comes early.
        self._written: tuple[Placement, ...] = ()
        self._next_beat_s = 0.0

    @property
    def fleet(self) -> Fleet | None:
        """What this process routes by; None before the registry was first read."""
        return self._fleet

    @property
    def reachable(self) -> bool:
        """Whether the registry answered when it was last asked."""
        return self._reachable_since_s < math.inf

    @property
    def reachable_since_s(self) -> float:
        """From when on it answered every time, of the monotonic clock; infinite while it does not."""
        return self._reachable_since_s

    @property
    def lease_s(self) -> float | None:
        """For how long it begins episodes if it hears nothing more; None for as long as it likes."""
        return self._lease.left_s

    @property
    def episode_idle_s(self) -> float:
        """Silent for so long, an episode has ended."""
        return self._policies.episodes.idle_s

    def is_left(self, record: RevisionRecord) -> bool:
        """Whether it drains and its episodes were told to go on with what serves."""
        return (record.policy, record.revision) in self._left

    def listen(self, listener: Listener) -> None:
        """`listener` gets every new state of the fleet, before this process says that it routes by it."""
        self._listeners.append(listener)

    def placements(self) -> tuple[Placement, ...]:
        """How far this process is, without what is counted for a guard: only a heartbeat needs that."""
        return tuple(
            Placement(
                gateway_id=self.gateway_id,
                policy=policy,
                revision=revision,
                state=held.state,
                error=held.error,
                attempt=held.attempt,
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

    async def settled(self, *, timeout_s: float) -> None:
        """Waits until every revision that the fleet wanted when it was last read is here, or has failed to be.

        At most `timeout_s`, which is no error: loading goes on.
        """
        await self._held.settled(timeout_s=timeout_s)

    def missing(self) -> dict[str, str]:
        """Policies that should be served and that nothing answers for here: name to why, empty while it loads."""
        missing = {}
        for policy in self._fleet.policies.values() if self._fleet is not None else ():
            held = self._held.get((policy.name, policy.route.stable)) if policy.route is not None else None
            if policy.route is not None and not (held is not None and held.is_ready):
                missing[policy.name] = held.error if held is not None else ""
        return missing

    async def stop(self) -> None:
        """Leaves the fleet. The backend keeps what it has: whoever owns it closes it."""
        self._lease.stop()
        tasks = [*self._forgetting, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._held.stop()
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
            if self._loads:
                self._forget_downloads(self._fleet, fleet)
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
        placements = tuple(replace(each, tally=self._tally(each.policy, each.revision)) for each in placements)
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

    def _tally(self, policy: str, revision: str) -> Tally | None:
        known = self._fleet.policies.get(policy) if self._fleet is not None else None
        return self._tallies.of(known, revision) if known is not None and self._tallies is not None else None

    def _note_reachable(self, reachable: bool, error: str = "") -> None:
        if reachable is not self.reachable:
            self._reachable_since_s = time.monotonic() if reachable else math.inf
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
        for record in wanted.values():
            self._held.have(record)
        self._left = {
            key
            for key, record in wanted.items()
            if record.state is RevisionState.DRAINING and (key in self._left or _moves_episodes(fleet, record))
        }
        for key in self._left:
            self._policies.episodes.release(*key)
        for key in [key for key in self._held if key not in wanted]:
            self._policies.episodes.release(*key)
            self._held.end(key)
        self._route(fleet)

    def _changed(self) -> None:
        """Something is further here than the fleet knows."""
        if self._fleet is not None:
            self._route(self._fleet)
        self._woken.set()

    def _forget_downloads(self, before: Fleet | None, fleet: Fleet) -> None:
        """Frees the files of revisions that no policy has any more, at first also of those deleted in its absence."""
        if before is not None and not before.digests - fleet.digests:
            return
        forget = partial(self._forget, before.digests if before is not None else None, fleet.digests)
        task = asyncio.create_task(asyncio.to_thread(forget), name="forget downloads")
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    def _forget(self, before: frozenset[str] | None, now: frozenset[str]) -> None:
        # What is being registered is not known yet: later on, only what was known is forgotten.
        for digest in (self._artifacts.downloads() if before is None else before) - now:
            self._artifacts.forget(digest)

    def _route(self, fleet: Fleet) -> None:
        served = {}
        for policy in fleet.policies.values():
            if (route := self._served(policy)) is not None:
                served[policy.name] = route
        missing = [policy for name, policy in fleet.policies.items() if name not in served]
        self._policies.apply(
            served,
            ending={policy.name: self._draining(policy) for policy in missing if policy.route is None},
            going_on=[
                (policy.name, record.revision)
                for policy in fleet.policies.values()
                for record in policy.revisions.values()
                if self._goes_on(policy.route, record)
            ],
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

    def _draining(self, policy: PolicyRecord) -> dict[str, Revision]:
        """What episodes in progress of a policy that is retired end on."""
        return {
            name: held.revision
            for (owner, name), held in self._held.items()
            if owner == policy.name and held.revision is not None and held.is_ready
        }

    def _goes_on(self, route: Route | None, record: RevisionRecord) -> bool:
        """Whether an episode that another gateway has begun on a revision goes on with it here."""
        if self._state(record.policy, record.revision) is not RevisionState.READY:
            return False
        if record.state is RevisionState.READY:
            # The other gateway may go by the next route already.
            return route is not None and route.switching
        drains = record.state is RevisionState.DRAINING and not self.is_left(record)
        return drains or record.state is RevisionState.SERVING

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
