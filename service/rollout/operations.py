"""The operations of an operator: load, probe, promote, roll back, split, shadow, drain, unload, retire.

Owns their order and what makes each safe: a revision is ready on every gateway before the route names it, and a failure
on the way leaves the route as it was. Does not own the database's rules (registry/), how a revision gets there
(loading.py), the change of a route itself (route_changes.py), the tasks (running.py), nor what happens unasked
(tending.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from service.artifacts import ArtifactStore
from service.errors import ConflictError, InvalidRequestError
from service.registry import Guard, Operation, PolicyRecord, Registry, Route, Shadow
from service.registry.operations import REGISTER
from service.rollout.follower import Follower
from service.rollout.gateways import LiveGateways
from service.rollout.loading import FleetLoading
from service.rollout.route_changes import RouteChanges
from service.rollout.running import RunningOperations
from service.rollout.schema_change import SHADOW, require_same_schema
from service.rollout.settings import RolloutSettings
from service.rollout.tending import Tending

_Result = TypeVar("_Result")
Shares = tuple[tuple[str, float], ...]
ROLL_BACK, RETIRE = "roll back", "retire"
# What a roll-back does not wait for.
_OVERTAKEN = frozenset({"load", "probe", "promote", "split", "shadow", "drain", "unload"})


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """How a revision takes over."""

    # Episodes in progress go on with the new revision at once.
    move_episodes: bool = False
    # The old revision stays loaded after it drained, so that a roll-back takes no time.
    keep_previous: bool = False
    # It may describe the policy otherwise than what serves: robots that were told the one refuse the other.
    allow_schema_change: bool = False
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
        settings = settings or RolloutSettings()
        self._running = RunningOperations(registry, follower, retry_s=settings.poll_interval_s * 10)
        self._gateways = LiveGateways(
            registry, follower, lost_s=settings.gateway_lost_s, poll_interval_s=settings.poll_interval_s
        )
        self._loading = FleetLoading(registry, follower, artifacts, self._gateways, timeout_s=settings.load_timeout_s)
        self._routes = RouteChanges(registry, follower, self._gateways, settings)
        self._tending = Tending(
            registry=registry,
            follower=follower,
            gateways=self._gateways,
            running=self._running,
            drain_timeout_s=settings.drain_timeout_s,
            interval_s=settings.poll_interval_s * 10,
            now=now,
        )

    async def start(self) -> None:
        await self._tending.start()

    async def stop(self) -> None:
        await self._tending.stop()
        await self._running.stop()

    # What an operator asks for.

    async def register(self, policy: str, location: str, *, revision: str = "", actor: str) -> Operation:
        """Reads and checks a checkpoint and makes it known. `revision` pins it: any prefix of its digest, 12 or more.

        Raises RevisionError for a location that cannot be one; the operation fails when there is no checkpoint there,
        or another.
        """
        self._artifacts.check_location(location)
        return await self._running.begin(REGISTER, policy, actor, partial(self._loading.register, location, revision))

    async def load(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Ready on every gateway, without traffic; loaded again where that failed."""
        return await self._start("load", policy, revision, actor, self._loading.load_only)

    async def probe(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Has every gateway probe it again; fails where one does not get the recorded answer, and changes nothing."""
        return await self._start("probe", policy, revision, actor, self._loading.probe)

    async def promote(
        self, policy: str, revision: str, how: Promotion | None = None, *, actor: str, only_first: bool = False
    ) -> Operation:
        """Loads if needed, then gives it all new episodes; the one before drains.

        Raises ConflictError where it has another schema than what serves, unless that is allowed; with `only_first`
        also where the policy has served before.
        """

        def target(now: PolicyRecord) -> str:
            if only_first and now.first_served_at is not None:
                raise ConflictError(f"policy {policy!r} has served before")
            return revision

        how = how or Promotion()
        if not how.allow_schema_change:
            # Before it is loaded; what serves may change until then, so the route is changed on the same condition.
            require_same_schema(await self._ask(partial(self._registry.policy, policy)), [revision])
        work = partial(self._promote, how, "promote", "")
        return await self._start("promote", policy, revision, actor, work, target=target)

    async def roll_back(
        self, policy: str, *, actor: str, reason: str = "", only_change: int | None = None
    ) -> Operation:
        """To the stable revision when there is a split, else to the one before it; episodes in progress move.

        Ends what else of the policy runs, but for another roll-back or its retirement. Raises ConflictError when there
        is nothing to go back to, or the route is not of `only_change` (Route.changes) any more.
        """

        def target(now: PolicyRecord) -> str:
            route = _routed(now)
            if only_change is not None and route.changes != only_change:
                raise ConflictError(f"the route of policy {policy!r} has changed since, there is nothing to undo")
            found = route.stable if len(route.shares) > 1 else route.previous
            if not found:
                raise ConflictError(
                    f"policy {policy!r} has served nothing but {route.stable}, there is nothing to go back to"
                )
            return found

        how = Promotion(move_episodes=True, allow_schema_change=True)
        work = partial(self._promote, how, ROLL_BACK, reason)
        return await self._running.begin(ROLL_BACK, policy, actor, work, target=target, overtakes=_OVERTAKEN)

    async def split(
        self,
        policy: str,
        shares: Mapping[str, float],
        *,
        guard: Guard | None = None,
        allow_schema_change: bool = False,
        actor: str,
    ) -> Operation:
        """Gives revisions a share of the new episodes each; what is left goes to the stable one.

        Raises ConflictError where one has another schema than the stable one, unless that is allowed.
        """
        record = await self._ask(partial(self._registry.policy, policy))
        stable = _routed(record).stable
        others = {name: share for name, share in shares.items() if name != stable}
        total = sum(others.values())
        if any(not 0.0 <= share <= 1.0 for share in others.values()) or total > 1.0 + 1e-9:
            raise InvalidRequestError("shares", f"{dict(shares)} came, expected 0 to 1 each and at most 1 in all")
        if stable in shares and abs(shares[stable] + total - 1.0) > 1e-6:
            raise InvalidRequestError("shares", f"{dict(shares)} came, expected 1 in all")
        if not allow_schema_change:
            require_same_schema(record, [name for name, share in others.items() if share > 0])
        work = partial(self._split, others, guard, allow_schema_change)
        return await self._start("split", policy, next(iter(others), stable), actor, work)

    async def shadow(self, policy: str, revision: str, share: float, *, actor: str) -> Operation:
        """Copies a share of the requests to a revision whose answers nobody plays; a share of 0 ends that.

        Raises ConflictError where it has another schema than the stable one.
        """
        if not 0.0 <= share <= 1.0:
            raise InvalidRequestError("share", f"{share} came, expected 0 to 1")
        if share > 0:
            # Before it is loaded; what serves may change until then.
            require_same_schema(await self._ask(partial(self._registry.policy, policy)), [revision], why=SHADOW)
        return await self._start("shadow", policy, revision, actor, partial(self._shadow, share))

    async def drain(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Takes a revision out of a split; episodes in progress end on it."""
        return await self._start("drain", policy, revision, actor, self._drain)

    async def unload(self, policy: str, revision: str, *, actor: str) -> Operation:
        """Gives back the memory of a revision that takes no traffic."""
        return await self._start("unload", policy, revision, actor, self._unload)

    async def retire(self, policy: str, *, actor: str) -> Operation:
        """Ends serving a policy: no episode begins, those in progress end, then all that is loaded is unloaded."""

        def target(now: PolicyRecord) -> str:
            if now.route is None:
                raise ConflictError(f"policy {policy!r} serves nothing, there is nothing to retire")
            return now.route.stable

        return await self._running.begin(RETIRE, policy, actor, self._retire, target=target)

    async def cancel(self, operation_id: str, *, actor: str) -> Operation:
        """Ends an operation, whichever gateway carries it out; what it was loading is given up.

        Raises UnknownOperationError, or ConflictError for one that has ended.
        """
        return await self._running.cancel(operation_id, actor=actor)

    async def guard(self, policy: str, guard: Guard, *, actor: str) -> PolicyRecord:
        """Sets when a change is rolled back by itself."""
        return await self._ask(
            partial(
                self._registry.change_route, policy, lambda now: replace(_routed(now), guard=guard),
                actor=actor, action="guard",
            )
        )  # fmt: skip

    async def delete(self, policy: str, revision: str, *, actor: str) -> None:
        """Forgets an unloaded revision; a download goes with the last policy that has it."""
        await self._ask(partial(self._registry.delete, policy, revision, actor=actor))
        self._follower.wake()

    async def delete_policy(self, policy: str, *, actor: str) -> None:
        """Forgets a policy that serves nothing, and all its revisions."""
        await self._ask(partial(self._registry.delete_policy, policy, actor=actor))
        self._follower.wake()

    async def ended(self, operation_id: str) -> Operation:
        """Waits for an operation of this process; one of another process is returned as it is."""
        return await self._running.ended(operation_id)

    # How it is done.

    async def _start(
        self,
        kind: str,
        policy: str,
        revision: str,
        actor: str,
        work: Callable[[Operation], Awaitable[None]],
        *,
        target: Callable[[PolicyRecord], str] | None = None,
    ) -> Operation:
        await self._ask(partial(self._registry.revision, policy, revision))
        return await self._running.begin(kind, policy, actor, work, revision=revision, target=target)

    async def _promote(self, how: Promotion, action: str, reason: str, operation: Operation) -> None:
        revision = operation.revision
        await self._loading.load(revision, operation)

        def change(now: PolicyRecord) -> Route:
            if not how.allow_schema_change:
                require_same_schema(now, [revision])
            route = now.route
            if route is None:
                return Route(shares=((revision, 1.0),), guard=how.guard or Guard())
            previous = route.stable if route.stable != revision else route.previous
            shadow = route.shadow if route.shadow and route.shadow.revision != revision else None
            shares = ((revision, 1.0),)
            return Route(
                shares=shares,
                previous=previous,
                keep_previous=how.keep_previous,
                move_episodes=how.move_episodes,
                shadow=shadow,
                guard=how.guard or route.guard,
                watched=action != ROLL_BACK and _is_watched(shares, route),
            )

        await self._change_route(change, operation, action=action, reason=reason)

    async def _split(
        self, others: Mapping[str, float], guard: Guard | None, allow_schema_change: bool, operation: Operation
    ) -> None:
        for revision, share in others.items():
            if share > 0:
                await self._loading.load(revision, operation)

        def change(now: PolicyRecord) -> Route:
            route = _routed(now)
            taking = {name: share for name, share in others.items() if share > 0 and name != route.stable}
            if not allow_schema_change:
                require_same_schema(now, [*taking])
            shares = _shared(route.stable, taking)
            watched = _is_watched(shares, route)
            return replace(route, shares=shares, move_episodes=False, guard=guard or route.guard, watched=watched)

        await self._change_route(change, operation, action="split")

    async def _shadow(self, share: float, operation: Operation) -> None:
        if share > 0:
            await self._loading.load(operation.revision, operation)

        def change(now: PolicyRecord) -> Route:
            if share > 0:
                require_same_schema(now, [operation.revision], why=SHADOW)
            elif now.shadow is not None and now.shadow.revision != operation.revision:
                raise ConflictError(f"revision {operation.revision} is no shadow, {now.shadow.revision} is")
            shadow = Shadow(revision=operation.revision, share=share) if share > 0 else None
            return replace(_routed(now), shadow=shadow)

        await self._change_route(change, operation, action="shadow")

    async def _drain(self, operation: Operation) -> None:
        revision = operation.revision

        def change(now: PolicyRecord) -> Route:
            route = _routed(now)
            if revision == route.stable:
                raise ConflictError(
                    f"revision {revision} is the stable one: promote another instead, or retire the policy"
                )
            shares = _shared(route.stable, {name: share for name, share in route.shares[1:] if name != revision})
            return replace(route, shares=shares, move_episodes=False, watched=_is_watched(shares, route))

        await self._change_route(change, operation, action="drain")

    async def _unload(self, operation: Operation) -> None:
        revision = operation.revision
        record = await self._ask(partial(self._registry.policy, operation.policy))
        if record.route is not None and revision in record.route.revisions:
            raise ConflictError(
                f"revision {revision} takes traffic: drain it, promote another or retire the policy first"
            )
        if record.shadow is not None and record.shadow.revision == revision:
            await self._shadow(0.0, operation)
        await self._loading.unload(operation)

    async def _retire(self, operation: Operation) -> None:
        await self._change_route(lambda now: None, operation, action=RETIRE)

    async def _change_route(
        self, change: Callable[[PolicyRecord], Route | None], operation: Operation, *, action: str, reason: str = ""
    ) -> None:
        await self._routes.make(
            operation.policy,
            change,
            actor=operation.actor,
            action=action,
            operation_id=operation.operation_id,
            reason=reason,
            hurry=action == ROLL_BACK,
        )

    async def _ask(self, question: Callable[[], _Result]) -> _Result:
        return await self._follower.ask(question)


def _shared(stable: str, others: Mapping[str, float]) -> Shares:
    """What the others leave goes to the stable one. Shares that make a whole may sum to a little more than 1."""
    return ((stable, max(0.0, 1.0 - sum(others.values()))), *others.items())


def _is_watched(shares: Shares, before: Route) -> bool:
    """Whether the guard may undo a change to `shares`: not one that leaves the stable revision alone, as it was."""
    if tuple(name for name, _ in shares) != (before.stable,):
        return True
    return before.watched and shares == before.shares


def _routed(policy: PolicyRecord) -> Route:
    if policy.route is None:
        raise ConflictError(f"policy {policy.name!r} serves nothing yet: promote a revision first")
    return policy.route
