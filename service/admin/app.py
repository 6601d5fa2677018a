"""The FastAPI app that operators and monitors talk to.

Owns the assembly of routers and the mapping of errors to HTTP. Does not own what is served, nor how it changes: the
registry and rollout/ do.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import grpc
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from service.admin import audit, gateways, health, metrics, operations, policies, revisions, schema, tokens
from service.admin.authentication import attach_access
from service.admin.dashboard import change_pages, fleet_pages, history_pages, sign_in_pages
from service.admin.dashboard.rendering import static_files
from service.admin.dashboard.sessions import Sessions
from service.admin.dependencies import AdminParts, FleetParts, FurtherMetrics, attach_parts
from service.admin.models import Problem
from service.admin.own_pages import ChangesFromOwnPages, OwnNames
from service.backend import Backend
from service.credentials import Credentials, Surface
from service.errors import AuthenticationError, ServiceError, status_code
from service.gateway.outcomes import Outcomes
from service.observability.recent import RecentTraffic
from service.policies import ServedPolicies
from service.registry import RegistryUnavailableError
from service.revision import RevisionError

_ROUTERS = (
    health.router,
    policies.router,
    revisions.router,
    operations.router,
    audit.router,
    gateways.router,
    tokens.router,
    metrics.router,
    schema.router,
    static_files,
    fleet_pages.router,
    history_pages.router,
    change_pages.router,
    sign_in_pages.router,
)
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.INTERNAL: 500,
}
# A body is read whole before it is known who sent it.
MAX_BODY_BYTES = 1024 * 1024


def create_admin_app(
    *,
    policies: ServedPolicies,
    backend: Backend,
    metrics_registry: CollectorRegistry,
    fleet: FleetParts,
    credentials: Credentials | None = None,
    recent: RecentTraffic | None = None,
    outcomes: Outcomes | None = None,
    triton_metrics: Callable[[], Awaitable[bytes]] | None = None,
    further_metrics: FurtherMetrics | None = None,
    listen_host: str = "",
) -> FastAPI:
    """Builds the app over what the gateway serves; it counts in `metrics_registry`, in `recent` and in `outcomes`.

    Without `credentials` nobody needs any. `triton_metrics` asks the Triton below the service, where there is one,
    `further_metrics` the gateway processes beside this one. `listen_host` is what a server of the app listens on; empty
    for an app that is called without one.
    """
    credentials = credentials or Credentials(metrics_registry=metrics_registry)
    # The interactive pages load scripts from a third party; the schema itself has a route like any other.
    app = FastAPI(title="premotor admin", docs_url=None, redoc_url=None, openapi_url=None, max_body_size=MAX_BODY_BYTES)
    parts = AdminParts(
        policies=policies,
        backend=backend,
        metrics_registry=metrics_registry,
        fleet=fleet,
        credentials=credentials,
        recent=recent or RecentTraffic(),
        outcomes=outcomes or Outcomes(),
        sessions=Sessions(),
        triton_metrics=triton_metrics,
        further_metrics=further_metrics,
    )
    attach_parts(app, parts)
    attach_access(app, credentials.on(Surface.ADMIN))
    app.add_middleware(ChangesFromOwnPages)
    if listen_host:
        app.add_middleware(OwnNames, listen_host=listen_host, needs_token=lambda: credentials.tokens.snapshot.required)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(RevisionError, _answer_bad_revision)
    app.add_exception_handler(RegistryUnavailableError, _answer_no_registry)
    return app


async def _answer_service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    problem = Problem(message=error.message, field=error.field)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, AuthenticationError) else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return JSONResponse(problem.model_dump(), status_code=_HTTP_STATUS[status_code(error)], headers=headers)


async def _answer_bad_revision(_request: Request, error: Exception) -> JSONResponse:
    """The operator named it, and may read what is wrong with it."""
    return JSONResponse(Problem(message=str(error), field="location").model_dump(), status_code=400)


async def _answer_no_registry(_request: Request, _error: Exception) -> JSONResponse:
    problem = Problem(message="the registry's database does not answer; what is served goes on being served", field="")
    return JSONResponse(problem.model_dump(), status_code=503)
