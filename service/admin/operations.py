"""Operations: what runs, what ran, and a stream of one's progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Query, Response, status
from fastapi.responses import StreamingResponse

from service.admin.authentication import CallerCheck, ProtectedRouter
from service.admin.dependencies import Reader, RegistryReader
from service.admin.fleet_models import OperationDescription, OperationList
from service.admin.models import Problem
from service.errors import AuthenticationError
from service.registry import Operation, Registry

router = ProtectedRouter(prefix="/v1/operations", tags=["operations"])
_NOT_FOUND: dict[int | str, dict[str, Any]] = {status.HTTP_404_NOT_FOUND: {"model": Problem}}
_POLL_INTERVAL_S = 0.2
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


@router.get("/{operation}/events", responses=_NOT_FOUND, response_class=Response)
async def stream_operation(operation: str, reader: Reader, check_caller: CallerCheck) -> StreamingResponse:
    """Server-sent events: the operation as JSON whenever it got further, the last one when it has ended.

    Ends as well with the caller's token.
    """
    first = await reader.ask(lambda registry: registry.operation(operation))
    return StreamingResponse(_events(first, reader, check_caller), media_type="text/event-stream")


async def _events(
    operation: Operation, reader: RegistryReader, check_caller: Callable[[], object]
) -> AsyncIterator[str]:
    last = None
    try:
        async with asyncio.timeout(_STREAM_S):
            while True:
                if operation != last:
                    name = "ended" if operation.done else "progress"
                    yield f"event: {name}\ndata: {OperationDescription.model_validate(operation).model_dump_json()}\n\n"
                if operation.done:
                    return
                last = operation
                await asyncio.sleep(_POLL_INTERVAL_S)
                check_caller()
                operation = await reader.ask(partial(Registry.operation, operation_id=operation.operation_id))
    except (TimeoutError, AuthenticationError):
        return
