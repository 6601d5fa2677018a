"""The FastAPI app that operators and monitors talk to.

Owns the assembly of routers and the mapping of errors to HTTP. Does not own what is served, nor any change to it: this
plane only reads.
"""

from __future__ import annotations

import grpc
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from service.admin import health, metrics, policies
from service.admin.dependencies import AdminParts, attach_parts
from service.admin.models import Problem
from service.backend import Backend
from service.errors import ServiceError, status_code
from service.policies import ServedPolicies

_ROUTERS = (health.router, policies.router, metrics.router)
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.INTERNAL: 500,
}


def create_admin_app(*, policies: ServedPolicies, backend: Backend, metrics_registry: CollectorRegistry) -> FastAPI:
    """Builds the app over what the gateway serves; `metrics_registry` is the one the gateway counts in."""
    # The interactive pages load scripts from a third party; the schema itself stays at /openapi.json.
    app = FastAPI(title="premotor admin", docs_url=None, redoc_url=None)
    attach_parts(app, AdminParts(policies=policies, backend=backend, metrics_registry=metrics_registry))
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ServiceError, _answer_service_error)
    return app


async def _answer_service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    problem = Problem(message=error.message, field=error.field)
    return JSONResponse(problem.model_dump(), status_code=_HTTP_STATUS[status_code(error)])
