"""Operations: what runs, what ran, a stream of one's progress, and its end before its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import Query, Response, status
from fastapi.responses import StreamingResponse

from service.admin.authentication import Actor, CallerCheck, ProtectedRouter
from service.admin.dependencies import Changes, Reader, RegistryReader
from service.admin.fleet_models import OperationDescription, OperationList
from service.admin.models import Problem
from service.errors import AuthenticationError
from service.registry import Operation, Registry, RegistryUnavailableError

router = ProtectedRouter(prefix="/v1/operations", tags=["operations"])
_NOT_FOUND: dict[int | str, dict[str, Any]] = {status.HTTP_404_NOT_FOUND: {"model": Problem}}
_NOT_RUNNING = _NOT_FOUND | {status.HTTP_409_CONFLICT: {"model": Problem}}
_POLL_INTERVAL_S = 0.2
# Whoever listens is told that the stream lives: a load says nothing for minutes.
_SILENCE_S = 5.0
# A stream that nobody ends must end: a client asks again and goes on.
_STREAM_S = 600.0


@router.get("")
async def list_operations(
    reader: Reader, policy: str = "", running: bool = False, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> OperationList:
    """The newest first."""
    found = await reader.ask(lambda registry: registry.operations(policy, running=running, most=limit))
    return OperationList(operations=[OperationDescription.model_validate(operation) for operation in found])


@router.get("/{operation}", responses=_NOT_FOUND)
async def get_operation(operation: str, reader: Reader) -> OperationDescription:
    return OperationDescription.model_validate(await reader.ask(lambda registry: registry.operation(operation)))


@router.post("/{operation}:cancel", responses=_NOT_RUNNING)
async def cancel_operation(operation: str, changes: Changes, actor: Actor) -> OperationDescription:
    """Ends it, whichever gateway carries it out. What it was loading is given up; what it had changed stays."""
    return OperationDescription.model_validate(await changes.cancel(operation, actor=actor))


@router.get("/{operation}/events", responses=_NOT_FOUND, response_class=Response)
async def stream_operation(operation: str, reader: Reader, check_caller: CallerCheck) -> StreamingResponse:
    """Server-sent events: the operation as JSON whenever it got further, the last one when it has ended.

    Comments in between say that the stream lives. It ends as well with the caller's token.
    """
    first = await reader.ask(lambda registry: registry.operation(operation))
    return StreamingResponse(_events(first, reader, check_caller), media_type="text/event-stream")


async def _events(
    operation: Operation, reader: RegistryReader, check_caller: Callable[[], object]
) -> AsyncIterator[str]:
    last, silent_s = None, 0.0
    try:
        async with asyncio.timeout(_STREAM_S):
            while True:
                if operation != last:
                    name = "ended" if operation.done else "progress"
                    yield f"event: {name}\ndata: {OperationDescription.model_validate(operation).model_dump_json()}\n\n"
                    last, silent_s = operation, 0.0
                elif silent_s >= _SILENCE_S:
                    yield ": it goes on\n\n"
                    silent_s = 0.0
                if operation.done:
                    return
                await asyncio.sleep(_POLL_INTERVAL_S)
                silent_s += _POLL_INTERVAL_S
                check_caller()
                # A registry that is away comes back, and the operation with it.
                with suppress(RegistryUnavailableError):
                    operation = await reader.ask(partial(Registry.operation, operation_id=operation.operation_id))
    except (TimeoutError, AuthenticationError):
        return
