"""Signing in with a token, once, and out again."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from service.admin.dashboard.sessions import COOKIE
from service.admin.dashboard.visitors import (
    Fields,
    PageRoute,
    admission,
    check_form,
    session_cookie,
    set_session_cookie,
    sign_in_page,
)
from service.admin.dependencies import Parts
from service.credentials import Scope
from service.credentials.secret import digest
from service.errors import ServiceError

# Nobody is asked who they are before they may say it.
router = APIRouter(route_class=PageRoute, include_in_schema=False)
_CheckedForm = Depends(check_form)
_SEE_OTHER = 303


@router.get("/sign-in")
async def show(request: Request) -> Response:
    return sign_in_page(request, "", status_code=200)


@router.post("/sign-in", dependencies=[_CheckedForm])
async def sign_in(request: Request, fields: Fields, parts: Parts) -> Response:
    """Takes the token, and from then on goes by a session that it began."""
    token, access = "".join(fields.get("token", [])).strip(), admission(request)
    try:
        caller = access.caller([f"Bearer {token}"])
        access.require(caller, (Scope.OBSERVE,))
    except ServiceError as error:
        return sign_in_page(request, error.message, status_code=401)
    response = RedirectResponse(_page_of_ours("".join(fields.get("going_to", []))), _SEE_OTHER)
    if caller.token is not None:
        set_session_cookie(request, response, parts.sessions.sign_in(caller.token.token_id, digest(token)))
    return response


@router.post("/sign-out", dependencies=[_CheckedForm])
async def sign_out(request: Request, parts: Parts) -> Response:
    parts.sessions.sign_out(session_cookie(request))
    response = RedirectResponse("/sign-in", _SEE_OTHER)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _page_of_ours(path: str) -> str:
    """Where a visitor was going; a form may say anything, and must not send them to another site."""
    ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if ours else "/"
