"""Who calls the admin plane, and whether they may.

Owns the router whose reads need scope observe and whose changes need scope admin, what OpenAPI says of that, and the
name under which a change goes into the audit log. Does not own what a credential is worth (credentials/).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase

from service.credentials import Access, Caller, Scope

_READS = frozenset({"GET", "HEAD"})


def attach_access(app: FastAPI, access: Access) -> None:
    app.state.access = access


async def _access(request: Request) -> Access:
    return request.app.state.access


async def _caller(request: Request, access: Annotated[Access, Depends(_access)]) -> AsyncIterator[Caller]:
    """Once a request, however many ask: this is where it counts against the caller's caps."""
    caller = access.caller(request.headers.getlist("authorization"))
    with access.request(caller):
        yield caller


async def _caller_check(request: Request, access: Annotated[Access, Depends(_access)]) -> Callable[[], Caller]:
    return partial(access.caller, request.headers.getlist("authorization"))


# For an answer that takes long: raises AuthenticationError once the caller's token has ended.
CallerCheck = Annotated[Callable[[], Caller], Depends(_caller_check)]


class _Admission(SecurityBase):
    """A dependency that refuses; being a security scheme, OpenAPI names it and its scopes."""

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="pm_<token id>_<secret>")
        self.scheme_name = "token"

    async def __call__(
        self,
        request: Request,
        needed: SecurityScopes,
        access: Annotated[Access, Depends(_access)],
        caller: Annotated[Caller, Depends(_caller)],
    ) -> None:
        access.require(caller, [Scope(scope) for scope in needed.scopes])
        request.state.caller = caller


_ADMISSION = _Admission()


def requires(scope: Scope) -> Any:
    """For the dependencies of a router or a route: refuses callers without the scope, 401 or 403.

    Where a router and its route ask for one each, both are needed.
    """
    return Security(_ADMISSION, scopes=[scope])


class ProtectedRouter(APIRouter):
    """A router that cannot forget: what reads needs scope observe, anything else scope admin."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        scope = Scope.OBSERVE if set(how.get("methods") or _READS) <= _READS else Scope.ADMIN
        how["dependencies"] = [requires(scope), *(how.get("dependencies") or ())]
        super().add_api_route(path, endpoint, **how)


async def _actor(request: Request) -> str:
    # Set by `requires` alone: a change on a route that forgot it fails here, instead of going into the log as nobody's.
    caller: Caller = request.state.caller
    return caller.actor


Actor = Annotated[str, Depends(_actor)]
