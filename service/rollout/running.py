"""The operations that run in this process, from their beginning to their end.

Owns their tasks: each is ended in the registry however it goes, and stops here when it was ended there, cancelled or
overtaken. Does not own what they do (operations.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from service.errors import ServiceError
from service.registry import Fleet, Operation, PolicyRecord, Registry, RegistryUnavailableError
from service.rollout.follower import Follower
from service.rollout.gateways import OperationFailedError

_logger = logging.getLogger(__name__)
# A process that stops gives so long to what an operation still has to undo, and as long to noting its end.
_STOP_S = 3.0
Work = Callable[[Operation], Awaitable[None]]


class RunningOperations:
    """One per process, beside its follower."""

    def __init__(self, registry: Registry, follower: Follower, *, retry_s: float) -> None:
        """`retry_s` is waited between attempts to write down an end."""
        self._registry, self._follower, self._retry_s = registry, follower, retry_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        follower.listen(self._stop_what_has_ended)

    async def begin(
        self,
        kind: str,
        policy: str,
        actor: str,
        work: Work,
        *,
        revision: str = "",
        target: Callable[[PolicyRecord], str] | None = None,
        overtakes: Collection[str] = (),
    ) -> Operation:
        """Raises ConflictError while another one runs, and what `target` raises (registry/operations.py)."""
        start = partial(
            self._registry.start_operation,
            kind=kind,
            policy=policy,
            revision=revision,
            actor=actor,
            gateway_id=self._follower.gateway_id,
            target=target,
            overtakes=overtakes,
        )
        operation = await self._follower.ask(start)
        if overtakes:
            self._follower.wake()
        task = asyncio.create_task(self._carry_out(operation, work), name=f"{kind} {operation.revision}")
        self._tasks[operation.operation_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.operation_id, None))
        return operation

    def carries_out(self, operation_id: str) -> bool:
        return operation_id in self._tasks

    async def cancel(self, operation_id: str, *, actor: str) -> Operation:
        """Whichever process carries it out. Raises UnknownOperationError, or ConflictError for one that has ended."""
        operation = await self._follower.ask(partial(self._registry.cancel_operation, operation_id, actor=actor))
        self._follower.wake()
        return operation

    async def ended(self, operation_id: str) -> Operation:
        """Waits for an operation of this process; one of another process is returned as it is."""
        task = self._tasks.get(operation_id)
        if task is not None:
            await asyncio.shield(asyncio.gather(task, return_exceptions=True))
        return await self._follower.ask(partial(self._registry.operation, operation_id))

    async def stop(self) -> None:
        """Returns soon, also while the database is away: tending ends what could not be noted as ended."""
        left = {*self._tasks.values()}
        while left:
            # Each time what it waits for by now ends, be it the writing down of its end.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_STOP_S)

    async def _stop_what_has_ended(self, _fleet: Fleet) -> None:
        for operation_id, task in [*self._tasks.items()]:
            if (await self._follower.ask(partial(self._registry.operation, operation_id))).done:
                task.cancel()

    async def _carry_out(self, operation: Operation, work: Work) -> None:
        fields = {"operation": operation.kind, "policy": operation.policy, "revision": operation.revision}
        error = ""
        try:
            await work(operation)
        except (OperationFailedError, ServiceError, RegistryUnavailableError, TimeoutError) as failure:
            error = str(failure) or "a gateway took too long"
        except asyncio.CancelledError:
            # Where it was cancelled or overtaken, the registry has said so before.
            error = "the process that carried it out is stopping"
            raise
        except Exception:  # the edge: an operation always ends, and says so
            _logger.exception("operation broke", extra={"fields": fields})
            error = "it met an error that nobody foresaw; the log has it"
        finally:
            ended = await self._end(operation.operation_id, error)
            _logger.info("operation ended", extra={"fields": {**fields, "error": ended.error}})

    async def _end(self, operation_id: str, error: str) -> Operation:
        """The database may be away just now: what ended must not look as if it ran for ever."""
        while True:
            try:
                return await self._follower.ask(partial(self._registry.end_operation, operation_id, error=error))
            except RegistryUnavailableError:
                await asyncio.sleep(self._retry_s)
