"""Changing a policy's route so that no two gateways contradict each other on it for longer than a second.

All but one that is silent while a revision is rolled back: it may go on until its lease has run out.

Owns announcing a change, making it and waiting until all that live go by it (lease.py). Does not own what it changes
to, nor whether its revisions are ready (operations.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from service.errors import ConflictError
from service.registry import PolicyRecord, Registry, RegistryUnavailableError, Route
from service.rollout.follower import Follower
from service.rollout.gateways import LiveGateways
from service.rollout.settings import RolloutSettings

# What makes a revision stop serving is not kept waiting by a gateway that is silent.
_HURRY_S = 1.0


class RouteChanges:
    """One per process."""

    def __init__(
        self, registry: Registry, follower: Follower, gateways: LiveGateways, settings: RolloutSettings
    ) -> None:
        self._registry, self._follower, self._gateways, self._settings = registry, follower, gateways, settings

    async def make(
        self,
        policy: str,
        change: Callable[[PolicyRecord], Route | None],
        *,
        actor: str,
        action: str,
        operation_id: str,
        reason: str = "",
        hurry: bool = False,
    ) -> None:
        """Changes the route, and returns once every gateway that lives routes by it; the others begin no episode.

        In a `hurry` one that is silent is not waited for before the change is made.
        """
        # A gateway that is alone has nobody to agree with.
        announced, lost = len(await self._gateways.alive()) > 1, list[str]()
        try:
            if announced:
                lost += await self._announce(policy, operation_id, hurry=hurry)
            detail = {"reason": reason} if reason else {}
            work = partial(
                self._registry.change_route,
                policy,
                change,
                actor=actor,
                action=action,
                detail=detail,
                operation_id=operation_id,
            )
            await self._follower.ask(work)
        except BaseException:
            if announced:
                # Tending takes it back later; or the operation has ended, and what is announced is another's.
                with suppress(RegistryUnavailableError, ConflictError):
                    take_back = partial(self._registry.announce, policy, switching=False, operation_id=operation_id)
                    await self._follower.ask(take_back)
            raise
        generation = await self._follower.ask(self._registry.generation)
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
        announce = partial(self._registry.announce, policy, switching=True, operation_id=operation_id)
        generation = await self._follower.ask(announce)
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

    async def _step(self, operation_id: str, step: str) -> None:
        await self._follower.ask(partial(self._registry.advance, operation_id, step))
