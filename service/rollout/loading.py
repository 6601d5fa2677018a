"""A revision's way into every gateway: registered, loaded, warmed, probed; and out of their memory.

Owns the order of it, for the whole fleet. Does not own loading in a process (held.py), nor which traffic a revision
takes (operations.py).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NoReturn

from service.artifacts import ArtifactStore, manifest_digest
from service.errors import ConflictError
from service.registry import Operation, Registry, RevisionRecord, RevisionState
from service.revision import Revision, RevisionError
from service.rollout.follower import Follower
from service.rollout.gateways import LOADING_ORDER, LiveGateways, OperationFailedError


class FleetLoading:
    """One per process, for its operations. Its methods raise OperationFailedError, and what the registry raises."""

    def __init__(
        self,
        registry: Registry,
        follower: Follower,
        artifacts: ArtifactStore,
        gateways: LiveGateways,
        *,
        timeout_s: float,
    ) -> None:
        """`timeout_s` is what a revision may take to be ready on every gateway."""
        self._registry, self._follower, self._artifacts, self._gateways = registry, follower, artifacts, gateways
        self._timeout_s = timeout_s

    async def register(self, location: str, wanted: str, operation: Operation) -> None:
        """`wanted` pins the revision by a prefix of its digest; empty takes what is there."""
        try:
            found = await self._artifacts.opened(operation.policy, location, revision=wanted)
        except RevisionError as error:
            raise OperationFailedError(str(error)) from None
        # First, for it is refused when this was cancelled meanwhile.
        step = partial(self._registry.advance, operation.operation_id, "read and checked", revision=found.revision)
        await self._follower.ask(step)
        registration = _registration(operation.policy, location, found)
        await self._follower.ask(partial(self._registry.register, **registration, actor=operation.actor))
        self._follower.wake()

    async def load_only(self, operation: Operation) -> None:
        """For its own sake: one that drains stays, but drains first, so that episodes go on with it in any gateway."""
        await self.load(operation.revision, operation)
        keep = partial(self._registry.keep, operation.policy, operation.revision, actor=operation.actor)
        await self._follower.ask(partial(keep, operation_id=operation.operation_id))
        self._follower.wake()

    async def load(self, revision: str, operation: Operation) -> None:
        """Returns once it is ready on every gateway.

        One that drains is not unloaded meanwhile: tending leaves alone what an operation runs for.
        """
        record = await self._record(revision, operation)
        if record.state.answers:
            await self._wait_for_all(record, operation)
            return
        if record.state in LOADING_ORDER:
            await self._set(revision, RevisionState.FAILED, operation, error="what loaded it before has ended")
        await self._set(revision, RevisionState.LOADING, operation)
        record = await self._record(revision, operation)
        await self._step(operation, "loading")
        try:
            async with asyncio.timeout(self._timeout_s):
                for state in (RevisionState.WARMING, RevisionState.READY):
                    await self._gateways.reached(record, state)
                    await self._set(revision, state, operation)
                    await self._step(operation, "warming" if state is RevisionState.WARMING else "probed, ready")
        except TimeoutError:
            await self._fail(revision, f"not ready within {self._timeout_s:g} s", operation)
        except OperationFailedError as error:
            await self._fail(revision, str(error), operation)

    async def probe(self, operation: Operation) -> None:
        record = await self._record(operation.revision, operation)
        if record.state not in (RevisionState.READY, RevisionState.SERVING):
            raise ConflictError(f"revision {record.revision} is {record.state}, expected it to be ready or serving")
        prove = partial(self._registry.prove_again, record.policy, record.revision, operation_id=operation.operation_id)
        record = await self._follower.ask(prove)
        self._follower.wake()
        faults = dict[str, str]()
        async with asyncio.timeout(self._timeout_s):
            async for gateway, fault in self._gateways.proven(record):
                await self._step(operation, f"{gateway}: {fault or 'passed'}")
                faults |= {gateway: fault} if fault else {}
        if faults:
            raise OperationFailedError("; ".join(f"{gateway}: {fault}" for gateway, fault in faults.items()))

    async def unload(self, operation: Operation) -> None:
        await self._set(operation.revision, RevisionState.UNLOADED, operation)
        await self._step(operation, "unloaded")

    async def _wait_for_all(self, record: RevisionRecord, operation: Operation) -> None:
        """The fleet has it, but a gateway may have come since, or have failed to load it: such a one tries again."""
        if await self._gateways.failed(record):
            prove = partial(
                self._registry.prove_again, record.policy, record.revision, operation_id=operation.operation_id
            )
            record = await self._follower.ask(prove)
            self._follower.wake()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._gateways.reached(record, RevisionState.READY, say=partial(self._step, operation))
        except TimeoutError:
            raise OperationFailedError(
                f"{record.revision} was not ready on every gateway within {self._timeout_s:g} s"
            ) from None

    async def _fail(self, revision: str, error: str, operation: Operation) -> NoReturn:
        await self._set(revision, RevisionState.FAILED, operation, error=error)
        raise OperationFailedError(error)

    async def _record(self, revision: str, operation: Operation) -> RevisionRecord:
        return await self._follower.ask(partial(self._registry.revision, operation.policy, revision))

    async def _set(self, revision: str, state: RevisionState, operation: Operation, *, error: str = "") -> None:
        change = partial(self._registry.set_state, operation.policy, revision, state, error=error)
        await self._follower.ask(partial(change, actor=operation.actor, operation_id=operation.operation_id))
        self._follower.wake()

    async def _step(self, operation: Operation, step: str) -> None:
        await self._follower.ask(partial(self._registry.advance, operation.operation_id, step))


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
