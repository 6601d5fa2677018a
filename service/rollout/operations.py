"""The operations of an operator: load, promote, roll back, split, shadow, drain, unload, and their end.

Owns their order and what makes each safe: the new revision is ready on every gateway before the route names it, no
gateway that cannot see the change contradicts it for longer than a second (lease.py), and a failure on the way leaves
the route as it was. Does not own the database's rules (registry/), loading in a process (follower.py), nor what happens
unasked (tending.py). An operation belongs to the process it was started in and ends with it.
"""

from __future__ import annotations

import asyncio
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
    Guard,
    Operation,
    PolicyRecord,
    Registry,
    RegistryUnavailableError,
    RevisionState,
    Route,
    Shadow,
)
from service.registry.registry import REGISTER
from service.revision import Revision, RevisionError
from service.rollout.follower import Follower
from service.rollout.gateways import LOADING_ORDER, LiveGateways, OperationFailedError
from service.rollout.tending import SERVICE_ACTOR, Tending

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
ROLL_BACK = "roll back"
# What makes a revision stop serving is not kept waiting by a gateway that is silent.
_HURRY_S = 1.0


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
        self._settings = settings = settings or RolloutSettings()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._gateways = LiveGateways(
            registry, follower, lost_s=settings.gateway_lost_s, poll_interval_s=settings.poll_interval_s
        )
        self._tending = Tending(
            registry=registry,
            follower=follower,
            gateways=self._gateways,
            drain_timeout_s=settings.drain_timeout_s,
            interval_s=settings.poll_interval_s * 10,
            now=now,
        )

    async def start(self) -> None:
        await self._tending.start()

    async def stop(self) -> None:
        await self._tending.stop()
        tasks = [*self._running.values()]
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
        actor = SERVICE_ACTOR
        if record.state is RevisionState.DRAINING:
            # It would be unloaded under the route that is about to name it, or has been since it was read.
            with suppress(ConflictError):
                await self._set(policy, revision, RevisionState.READY, actor)
            record = await self._ask(partial(self._registry.revision, policy, revision))
        if record.state.answers:
            return
        if record.state not in LOADING_ORDER:
            await self._set(policy, revision, RevisionState.LOADING, actor)
        await self._step(operation_id, "loading")
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                for state in (RevisionState.WARMING, RevisionState.READY):
                    await self._gateways.reached(policy, revision, state)
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
        """Changes the route, and returns once every gateway that lives routes by it; the others begin no episode."""
        # A gateway that is alone has nobody to agree with.
        announced, lost = len(await self._gateways.alive()) > 1, list[str]()
        try:
            if announced:
                lost += await self._announce(policy, operation_id, hurry=action == ROLL_BACK)
            detail = {"reason": reason} if reason else {}
            work = partial(self._registry.change_route, policy, change, actor=actor, action=action, detail=detail)
            await self._ask(work)
        except BaseException:
            if announced:
                with suppress(RegistryUnavailableError):  # tending takes it back later
                    await self._ask(partial(self._registry.announce, policy, switching=False))
            raise
        generation = await self._ask(self._registry.generation)
        await self._follower.applied(generation, timeout_s=self._settings.apply_timeout_s)
        say = partial(self._step, operation_id)
        lost += await self._gateways.follow(generation, within_s=self._patience_s, say=say)
        others = f"; {', '.join(lost)} has left, or is cut off and begins no episode" if lost else ""
        await self._step(operation_id, f"every gateway routes by it{others}")

    async def _announce(self, policy: str, operation_id: str, *, hurry: bool) -> list[str]:
        """Has every gateway know that a change comes, from when on one that is cut off begins no episode for long.

        Waits for one that is silent until it counts as lost, and its own lease has run out; in a hurry, not. Returns
        the names of those.
        """
        generation = await self._ask(partial(self._registry.announce, policy, switching=True))
        self._follower.wake()
        within_s = _HURRY_S if hurry else self._patience_s
        try:
            return await self._gateways.follow(generation, within_s=within_s, say=partial(self._step, operation_id))
        except TimeoutError:
            if not hurry:
                raise
            await self._step(operation_id, "does not wait for a gateway that is silent")
            return []

    @property
    def _patience_s(self) -> float:
        return self._settings.apply_timeout_s + self._settings.gateway_lost_s

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
