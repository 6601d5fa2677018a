"""The operations of an operator: load, promote, roll back, split, shadow, drain, unload, and their end.

Owns their order and what makes each safe: the new revision is ready on every gateway before the route names it, and a
failure on the way leaves the route as it was. Does not own the database's rules (registry/) nor loading in a process
(follower.py). An operation belongs to the process it was started in and ends with it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from service.artifacts import ArtifactStore, manifest_digest
from service.errors import ConflictError, InvalidRequestError, ServiceError
from service.registry import (
    Gateway,
    Guard,
    Operation,
    PolicyRecord,
    Registry,
    RegistryUnavailableError,
    RevisionRecord,
    RevisionState,
    Route,
    Shadow,
)
from service.registry.registry import REGISTER
from service.revision import Revision, RevisionError
from service.rollout.follower import Follower

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_ORDER = (RevisionState.LOADING, RevisionState.WARMING, RevisionState.READY)
SERVICE_ACTOR = "service"
ROLL_BACK = "roll back"
# Of the looks at what drains: a dead process is no hurry.
_ORPHANS_EVERY = 5


class OperationFailedError(Exception):
    """An operation could not be carried out; what served goes on serving."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    load_timeout_s: float = 300.0
    # How long every gateway may take to route by a change. One that is silent for longer is out of the fleet.
    apply_timeout_s: float = 5.0
    poll_interval_s: float = 0.1
    # A gateway whose heartbeat stood still for this long is gone.
    gateway_lost_s: float = 10.0
    # Episodes in progress get this long to end on a revision that drains; then they are moved.
    drain_timeout_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """How a revision takes over."""

    # Episodes in progress go on with the new revision at once.
    move_episodes: bool = False
    # The old revision stays loaded after it drained, so that a roll-back takes no time.
    keep_previous: bool = False
    guard: Guard | None = None


class Rollout:
    """One per process, beside its follower. `start` ends what a process before this one left unfinished."""

    def __init__(
        self,
        *,
        registry: Registry,
        follower: Follower,
        artifacts: ArtifactStore,
        settings: RolloutSettings | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry, self._follower, self._artifacts = registry, follower, artifacts
        self._settings = settings or RolloutSettings()
        self._now = now
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tending: asyncio.Task[None] | None = None
        self._seen: dict[str, tuple[int, float]] = {}

    async def start(self) -> None:
        await self._end_orphans()
        self._tending = asyncio.create_task(self._tend(), name="rollout")

    async def stop(self) -> None:
        tasks = [*self._running.values(), *([self._tending] if self._tending is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What an operator asks for.

    async def register(self, policy: str, location: str, *, revision: str = "", actor: str) -> Operation:
        """Reads and checks a checkpoint and makes it known. `revision` pins it: any prefix of its digest, 12 or more.

        Raises RevisionError for a location that cannot be one; the operation fails when there is no checkpoint there,
        or another.
        """
        self._artifacts.check_location(location)
        return await self._begin(
            REGISTER, policy, "", actor, partial(self._register, policy, location, revision, actor)
        )

    async def load(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Ready on every gateway, without traffic."""
        return await self._start("load", policy, revision, actor, partial(self._load, policy, revision))

    async def promote(self, policy: str, revision: str, how: Promotion | None = None, *, actor: str) -> Operation:
        """Loads if needed, then gives it all new episodes; the one before drains."""
        work = partial(self._promote, policy, revision, how or Promotion(), actor, "promote", "")
        return await self._start("promote", policy, revision, actor, work)

    async def roll_back(self, policy: str, *, actor: str, reason: str = "") -> Operation:
        """To the stable revision when there is a split, else to the one before it."""
        record = await self._ask(partial(self._registry.policy, policy))
        route = _routed(record)
        target = route.stable if len(route.shares) > 1 else route.previous
        if not target:
            raise ConflictError(
                f"policy {policy!r} has served nothing but {route.stable}, there is nothing to go back to"
            )
        work = partial(self._promote, policy, target, Promotion(move_episodes=True), actor, ROLL_BACK, reason)
        return await self._start(ROLL_BACK, policy, target, actor, work)

    async def split(
        self, policy: str, shares: Mapping[str, float], *, guard: Guard | None = None, actor: str
    ) -> Operation:
        """Gives revisions a share of the new episodes each; what is left goes to the stable one."""
        record = await self._ask(partial(self._registry.policy, policy))
        stable = _routed(record).stable
        others = {name: share for name, share in shares.items() if name != stable}
        total = sum(others.values())
        if any(not 0.0 <= share <= 1.0 for share in others.values()) or total > 1.0 + 1e-9:
            raise InvalidRequestError("shares", f"{dict(shares)} came, expected 0 to 1 each and at most 1 in all")
        if stable in shares and abs(shares[stable] + total - 1.0) > 1e-6:
            raise InvalidRequestError("shares", f"{dict(shares)} came, expected 1 in all")
        work = partial(self._split, policy, others, guard, actor)
        return await self._start("split", policy, next(iter(others), stable), actor, work)

    async def shadow(self, policy: str, revision: str, share: float, *, actor: str) -> Operation:
        """Copies a share of the requests to a revision whose answers nobody plays; a share of 0 ends that."""
        if not 0.0 <= share <= 1.0:
            raise InvalidRequestError("share", f"{share} came, expected 0 to 1")
        return await self._start(
            "shadow", policy, revision, actor, partial(self._shadow, policy, revision, share, actor)
        )

    async def drain(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Takes a revision out of a split; episodes in progress end on it."""
        return await self._start("drain", policy, revision, actor, partial(self._drain, policy, revision, actor))

    async def unload(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Gives back the memory of a revision that takes no traffic."""
        return await self._start("unload", policy, revision, actor, partial(self._unload, policy, revision, actor))

    async def guard(self, policy: str, guard: Guard, *, actor: str) -> PolicyRecord:
        """Sets when a change is rolled back by itself."""
        return await self._ask(
            partial(
                self._registry.change_route, policy, lambda now: replace(_routed(now), guard=guard),
                actor=actor, action="guard",
            )
        )  # fmt: skip

    async def delete(self, policy: str, revision: str, *, actor: str) -> None:
        """Forgets an unloaded revision, and its download."""
        await self._ask(partial(self._registry.delete, policy, revision, actor=actor))
        await asyncio.to_thread(self._artifacts.forget, revision)
        self._follower.wake()

    async def ended(self, operation_id: str) -> Operation:
        """Waits for an operation of this process; one of another process is returned as it is."""
        task = self._running.get(operation_id)
        if task is not None:
            await asyncio.shield(asyncio.gather(task, return_exceptions=True))
        return await self._ask(partial(self._registry.operation, operation_id))

    # How it is done.

    async def _start(
        self, kind: str, policy: str, revision: str, actor: str, work: Callable[[str], Awaitable[None]]
    ) -> Operation:
        await self._ask(partial(self._registry.revision, policy, revision))
        return await self._begin(kind, policy, revision, actor, work)

    async def _begin(
        self, kind: str, policy: str, revision: str, actor: str, work: Callable[[str], Awaitable[None]]
    ) -> Operation:
        operation = await self._ask(
            partial(
                self._registry.start_operation, kind=kind, policy=policy, revision=revision, actor=actor,
                gateway_id=self._follower.gateway_id,
            )
        )  # fmt: skip
        task = asyncio.create_task(self._carry_out(operation, work), name=f"{kind} {revision}")
        self._running[operation.operation_id] = task
        task.add_done_callback(lambda _: self._running.pop(operation.operation_id, None))
        return operation

    async def _carry_out(self, operation: Operation, work: Callable[[str], Awaitable[None]]) -> None:
        fields = {"operation": operation.kind, "policy": operation.policy, "revision": operation.revision}
        error = ""
        try:
            await work(operation.operation_id)
        except (OperationFailedError, ServiceError, RegistryUnavailableError, TimeoutError) as failure:
            error = str(failure) or "a gateway took too long"
        except asyncio.CancelledError:
            error = "the process that carried it out is stopping"
            raise
        except Exception:  # the edge: an operation always ends, and says so
            _logger.exception("operation broke", extra={"fields": fields})
            error = "it met an error that nobody foresaw; the log has it"
        finally:
            _logger.info("operation ended", extra={"fields": {**fields, "error": error}})
            await self._end(operation.operation_id, error)

    async def _end(self, operation_id: str, error: str) -> None:
        """The database may be away just now: what ended must not look as if it ran for ever."""
        while True:
            try:
                await self._ask(partial(self._registry.end_operation, operation_id, error=error))
                return
            except RegistryUnavailableError:
                await asyncio.sleep(self._settings.poll_interval_s * 10)

    async def _register(self, policy: str, location: str, wanted: str, actor: str, operation_id: str) -> None:
        try:
            found = await asyncio.to_thread(self._artifacts.open, policy, location, revision=wanted)
        except RevisionError as error:
            raise OperationFailedError(str(error)) from None
        registration = _registration(policy, location, found)
        await self._ask(partial(self._registry.register, **registration, actor=actor))
        self._follower.wake()
        step = partial(self._registry.advance, operation_id, "read and checked", revision=found.revision)
        await self._ask(step)

    async def _load(self, policy: str, revision: str, operation_id: str) -> None:
        record = await self._ask(partial(self._registry.revision, policy, revision))
        if record.state.answers:
            return
        actor = SERVICE_ACTOR
        if record.state not in _ORDER:
            await self._set(policy, revision, RevisionState.LOADING, actor)
        await self._step(operation_id, "loading")
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                for state in (RevisionState.WARMING, RevisionState.READY):
                    await self._all_reached(policy, revision, state)
                    await self._set(policy, revision, state, actor)
                    await self._step(operation_id, "warming" if state is RevisionState.WARMING else "probed, ready")
        except TimeoutError:
            await self._fail(policy, revision, f"not ready within {self._settings.load_timeout_s:g} s")
        except OperationFailedError as error:
            await self._fail(policy, revision, str(error))

    async def _fail(self, policy: str, revision: str, error: str) -> None:
        await self._ask(
            partial(self._registry.set_state, policy, revision, RevisionState.FAILED, error=error, actor=SERVICE_ACTOR)
        )
        self._follower.wake()
        raise OperationFailedError(error)

    async def _promote(
        self,
        policy: str,
        revision: str,
        how: Promotion,
        actor: str,
        action: str,
        reason: str,
        operation_id: str,
    ) -> None:
        await self._load(policy, revision, operation_id)

        def change(now: PolicyRecord) -> Route:
            route = now.route
            if route is None:
                return Route(shares=((revision, 1.0),), guard=how.guard or Guard())
            previous = route.stable if route.stable != revision else route.previous
            shadow = route.shadow if route.shadow and route.shadow.revision != revision else None
            return Route(
                shares=((revision, 1.0),),
                previous=previous,
                keep_previous=how.keep_previous,
                move_episodes=how.move_episodes,
                shadow=shadow,
                guard=how.guard or route.guard,
                watched=action != ROLL_BACK,
            )

        await self._change_route(policy, change, actor=actor, action=action, operation_id=operation_id, reason=reason)

    async def _split(
        self, policy: str, others: Mapping[str, float], guard: Guard | None, actor: str, operation_id: str
    ) -> None:
        for revision, share in others.items():
            if share > 0:
                await self._load(policy, revision, operation_id)

        def change(now: PolicyRecord) -> Route:
            route = _routed(now)
            taking = {name: share for name, share in others.items() if share > 0 and name != route.stable}
            shares = ((route.stable, 1.0 - sum(taking.values())), *taking.items())
            return replace(route, shares=shares, move_episodes=False, guard=guard or route.guard, watched=True)

        await self._change_route(policy, change, actor=actor, action="split", operation_id=operation_id)

    async def _shadow(self, policy: str, revision: str, share: float, actor: str, operation_id: str) -> None:
        if share > 0:
            await self._load(policy, revision, operation_id)

        def change(now: PolicyRecord) -> Route:
            shadow = Shadow(revision=revision, share=share) if share > 0 else None
            return replace(_routed(now), shadow=shadow)

        await self._change_route(policy, change, actor=actor, action="shadow", operation_id=operation_id)

    async def _drain(self, policy: str, revision: str, actor: str, operation_id: str) -> None:
        def change(now: PolicyRecord) -> Route:
            route = _routed(now)
            if revision == route.stable:
                raise ConflictError(f"revision {revision} is the stable one: promote another instead")
            left = tuple((name, share) for name, share in route.shares[1:] if name != revision)
            shares = ((route.stable, 1.0 - sum(share for _, share in left)), *left)
            return replace(route, shares=shares, move_episodes=False)

        await self._change_route(policy, change, actor=actor, action="drain", operation_id=operation_id)

    async def _unload(self, policy: str, revision: str, actor: str, operation_id: str) -> None:
        record = await self._ask(partial(self._registry.policy, policy))
        if record.route is not None and revision in record.route.revisions:
            raise ConflictError(f"revision {revision} takes traffic: drain it or promote another first")
        if record.shadow is not None and record.shadow.revision == revision:
            await self._shadow(policy, revision, 0.0, actor, operation_id)
        await self._set(policy, revision, RevisionState.UNLOADED, actor)
        await self._step(operation_id, "unloaded")

    async def _change_route(
        self,
        policy: str,
        change: Callable[[PolicyRecord], Route],
        *,
        actor: str,
        action: str,
        operation_id: str,
        reason: str = "",
    ) -> None:
        """Changes the route, and returns once every gateway routes by it."""
        detail = {"reason": reason} if reason else {}
        await self._ask(partial(self._registry.change_route, policy, change, actor=actor, action=action, detail=detail))
        generation = await self._ask(self._registry.generation)
        await self._follower.applied(generation, timeout_s=self._settings.apply_timeout_s)
        async with asyncio.timeout(self._settings.apply_timeout_s + self._settings.gateway_lost_s):
            while any(gateway.generation < generation for gateway in await self._gateways()):  # noqa: ASYNC110
                await asyncio.sleep(self._settings.poll_interval_s)
        await self._step(operation_id, "every gateway routes by it")

    async def _all_reached(self, policy: str, revision: str, state: RevisionState) -> None:
        """Waits until every gateway is as far. Raises OperationFailedError with the first reason of one that failed."""
        reached = _ORDER[_ORDER.index(state) :]
        while True:
            self._follower.wake()
            gateways = {gateway.gateway_id for gateway in await self._gateways()}
            placements = await self._ask(partial(self._registry.placements, policy, revision))
            for placement in placements:
                if placement.state is RevisionState.FAILED:
                    raise OperationFailedError(placement.error)
            if gateways <= {each.gateway_id for each in placements if each.state in reached}:
                return
            await asyncio.sleep(self._settings.poll_interval_s)

    async def _gateways(self) -> list[Gateway]:
        """Those that live. Judged by whether heartbeats go on, so that no two clocks are compared."""
        now_s = asyncio.get_running_loop().time()
        alive = []
        for gateway in await self._ask(self._registry.gateways):
            beats, since_s = self._seen.get(gateway.gateway_id, (-1, now_s))
            if beats != gateway.beats:
                since_s = now_s
            self._seen[gateway.gateway_id] = gateway.beats, since_s
            if now_s - since_s < self._settings.gateway_lost_s:
                alive.append(gateway)
            else:
                _logger.error("gateway lost", extra={"fields": {"gateway": gateway.gateway_id}})
                await self._ask(partial(self._registry.leave, gateway.gateway_id))
                self._seen.pop(gateway.gateway_id, None)
        return alive

    async def _tend(self) -> None:
        """What nobody asks for: revisions that have drained go, and operations whose process died end."""
        for round_ in itertools.count(1):
            await asyncio.sleep(self._settings.poll_interval_s * 10)
            try:
                await self._end_drains()
                if round_ % _ORPHANS_EVERY == 0:
                    await self._end_orphans()
            except RegistryUnavailableError:
                continue
            except Exception:  # the edge: tending goes on
                _logger.exception("tending failed")

    async def _end_drains(self) -> None:
        fleet = self._follower.fleet
        for policy in fleet.policies.values() if fleet is not None else ():
            for record in policy.revisions.values():
                if record.state is RevisionState.DRAINING and policy.route is not None:
                    # Another gateway may have been first.
                    with suppress(ConflictError):
                        await self._end_drain(policy, policy.route, record)

    async def _end_drain(self, policy: PolicyRecord, route: Route, record: RevisionRecord) -> None:
        waited_s = (self._now() - record.changed_at).total_seconds()
        placements = await self._ask(partial(self._registry.placements, policy.name, record.revision))
        busy = sum(placement.num_in_progress for placement in placements)
        if busy and not route.move_episodes and waited_s < self._settings.drain_timeout_s:
            return
        is_previous = record.revision == route.previous
        watched = is_previous and route.guard.watches and waited_s < route.guard.watch_s
        shadowed = route.shadow is not None and route.shadow.revision == record.revision
        keep = shadowed or watched or (is_previous and route.keep_previous)
        await self._set(
            policy.name,
            record.revision,
            RevisionState.READY if keep else RevisionState.UNLOADED,
            SERVICE_ACTOR,
        )

    async def _end_orphans(self) -> None:
        alive = {gateway.gateway_id for gateway in await self._gateways()}
        for operation in await self._ask(partial(self._registry.operations, running=True)):
            if operation.gateway_id in alive:
                continue
            error = "the process that carried it out ended"
            await self._ask(partial(self._registry.end_operation, operation.operation_id, error=error))
        running = {each.policy for each in await self._ask(partial(self._registry.operations, running=True))}
        fleet = await self._ask(self._registry.fleet)
        for policy in fleet.policies.values():
            for record in policy.revisions.values():
                stuck = record.state in (RevisionState.LOADING, RevisionState.WARMING)
                if stuck and policy.name not in running:
                    await self._ask(
                        partial(
                            self._registry.set_state, policy.name, record.revision, RevisionState.FAILED,
                            error="the process that loaded it ended", actor=SERVICE_ACTOR,
                        )
                    )  # fmt: skip

    async def _set(self, policy: str, revision: str, state: RevisionState, actor: str) -> None:
        await self._ask(partial(self._registry.set_state, policy, revision, state, actor=actor))
        self._follower.wake()

    async def _step(self, operation_id: str, step: str) -> None:
        if operation_id:
            await self._ask(partial(self._registry.advance, operation_id, step))

    async def _ask(self, question: Callable[[], _Result]) -> _Result:
        return await self._follower.ask(question)


def _registration(policy: str, location: str, found: Revision) -> dict[str, Any]:
    weights = found.directory / "model.safetensors"
    return {
        "policy": policy,
        "revision": found.revision,
        "manifest_sha256": manifest_digest(found),
        "location": location,
        "variant": found.description.variant,
        "schema_digest": found.description.schema_digest,
        "num_bytes": weights.stat().st_size,
    }


def _routed(policy: PolicyRecord) -> Route:
    if policy.route is None:
        raise ConflictError(f"policy {policy.name!r} serves nothing yet: promote a revision first")
    return policy.route
