"""The service's metrics in Prometheus' text format."""

from __future__ import annotations

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.admin.authentication import ProtectedRouter
from service.admin.dependencies import MetricsRegistry

router = ProtectedRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(registry: MetricsRegistry) -> Response:
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
