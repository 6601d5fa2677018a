"""The service's metrics in Prometheus' text format, or in OpenMetrics' with exemplars where that is asked for."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Header, Response, status
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import choose_encoder

from service.admin.authentication import ProtectedRouter
from service.admin.dependencies import MetricsRegistry, Parts
from service.admin.models import Problem
from service.backend import BackendError
from service.errors import NotReadyError
from service.observability.process_metrics import FIRST, ProcessesMetrics

router = ProtectedRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(registry: MetricsRegistry, parts: Parts, accept: Annotated[str, Header()] = "") -> Response:
    """Where further gateway processes answer robots too, theirs are among it, and samples have the label `process`."""
    encode, content_type = choose_encoder(accept)
    if parts.further_metrics is None:
        return Response(encode(registry), media_type=content_type)
    further = await parts.further_metrics()
    # Collected here: what it reads belongs to the event loop that answers robots.
    processes = ProcessesMetrics({FIRST: list(registry.collect()), **further})
    # In a thread: written out, several processes' metrics are long.
    return Response(await asyncio.to_thread(encode, processes), media_type=content_type)


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (status.HTTP_404_NOT_FOUND, status.HTTP_503_SERVICE_UNAVAILABLE)
}


@router.get("/metrics/triton", response_class=Response, responses=_PROBLEMS)
async def triton_metrics(parts: Parts) -> Response:
    """Triton's own, which listens where nobody else can ask it."""
    if parts.triton_metrics is None:
        problem = Problem(message="no Triton runs below this service", field="")
        return JSONResponse(problem.model_dump(), status_code=status.HTTP_404_NOT_FOUND)
    try:
        return Response(await parts.triton_metrics(), media_type=CONTENT_TYPE_LATEST)
    except BackendError:
        raise NotReadyError("Triton's metrics cannot be had now", retry_after_s=1.0) from None
