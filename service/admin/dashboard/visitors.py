"""Who looks at a page, and whether they may: a session's cookie, or a bearer token as on any other route.

Owns the router of pages, whose reads need scope observe and whose forms need scope admin and a form token, and the
pages that say no. Does not own sessions (sessions.py) nor what a credential is worth (credentials/).
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from service.admin.dashboard.rendering import page
from service.admin.dashboard.sessions import COOKIE, SESSION_S, Sessions
from service.admin.dependencies import AdminParts, Parts
from service.credentials import Access, Caller, Scope, Surface
from service.errors import (
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    NotAllowedError,
    ServiceError,
    UnknownOperationError,
    UnknownPolicyError,
    UnknownRevisionError,
)
from service.registry import RegistryUnavailableError

FORM_TOKEN = "form_token"
_MAX_FIELDS = 200
_NOT_FOUND = (UnknownPolicyError, UnknownRevisionError, UnknownOperationError)


class ForgedFormError(ServiceError):
    """A form came that no page of ours made for this visitor."""


@dataclass(frozen=True, kw_only=True)
class Visitor:
    caller: Caller
    # For the forms of the pages they are given.
    form_token: str
    signed_in: bool

    @property
    def may_change(self) -> bool:
        return self.caller.may((Scope.ADMIN,))


def session_cookie(request: Request) -> str:
    """The cookie that this visitor has, or is about to be given."""
    cookie = getattr(request.state, "new_cookie", None) or request.cookies.get(COOKIE, "")
    sessions: Sessions = request.app.state.parts.sessions
    if not sessions.made(cookie):
        cookie = request.state.new_cookie = sessions.new_cookie()
    return cookie


async def form(request: Request) -> dict[str, list[str]]:
    """The fields of a form, the empty ones left out."""
    content = await request.body()
    try:
        return parse_qs(content.decode(), max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        return {}


async def check_form(request: Request, fields: Annotated[dict[str, list[str]], Depends(form)]) -> None:
    """Raises ForgedFormError for a form that another site sent. A bearer token is nothing a browser sends by itself."""
    if "authorization" in request.headers:
        return
    sessions: Sessions = request.app.state.parts.sessions
    expected = sessions.form_token(request.cookies.get(COOKIE, ""))
    if not hmac.compare_digest(expected.encode(), "".join(fields.get(FORM_TOKEN, [])).encode()):
        raise ForgedFormError(
            "the form is not of this session: it was opened before you signed in, or the service restarted"
        )


def admission(request: Request) -> Access:
    return request.app.state.parts.credentials.on(Surface.ADMIN)


async def _visitor(request: Request, parts: Parts) -> AsyncIterator[Visitor]:
    """Raises AuthenticationError, NotAllowedError or OverloadedError."""
    access = admission(request)
    caller, signed_in = _caller(request, parts, access)
    access.require(caller, (Scope.OBSERVE if request.method in ("GET", "HEAD") else Scope.ADMIN,))
    with access.request(caller):
        yield Visitor(caller=caller, form_token=parts.sessions.form_token(session_cookie(request)), signed_in=signed_in)


def _caller(request: Request, parts: AdminParts, access: Access) -> tuple[Caller, bool]:
    session = parts.sessions.session(request.cookies.get(COOKIE, ""))
    if "authorization" in request.headers or session is None:
        return access.caller(request.headers.getlist("authorization")), False
    return access.holder(session.token_id, session.sha256), True


Viewer = Annotated[Visitor, Depends(_visitor)]
Fields = Annotated[dict[str, list[str]], Depends(form)]


class PageRoute(APIRoute):
    """A route whose refusals are pages, and which gives a visitor without a cookie one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_with_pages(request: Request) -> Response:
            try:
                response = await answer(request)
            except (ServiceError, RegistryUnavailableError, RequestValidationError) as error:
                response = refusal(request, error)
            if (cookie := getattr(request.state, "new_cookie", None)) is not None:
                set_session_cookie(request, response, cookie)
            return response

        return answer_with_pages


class PageRouter(APIRouter):
    """A router that cannot forget who may see and change what; its routes are no part of the API's schema."""

    def __init__(self) -> None:
        super().__init__(route_class=PageRoute, include_in_schema=False)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        checks = [Depends(_visitor)]
        if "POST" in (how.get("methods") or ()):
            checks.append(Depends(check_form))
        how["dependencies"] = [*checks, *(how.get("dependencies") or ())]
        super().add_api_route(path, endpoint, **how)


def set_session_cookie(request: Request, response: Response, cookie: str) -> None:
    response.set_cookie(
        COOKIE, cookie, max_age=int(SESSION_S), path="/", httponly=True, samesite="strict", secure=_is_https(request)
    )


def refusal(request: Request, error: Exception) -> Response:
    """The page that says why there is no other."""
    if isinstance(error, AuthenticationError):
        return sign_in_page(request, error.message if _had_session(request) else "", status_code=401)
    if isinstance(error, RegistryUnavailableError):
        message = "The registry's database does not answer. What is served goes on being served."
        return _problem(request, 503, "The registry is away", message)
    if isinstance(error, NotAllowedError | ForgedFormError):
        return _problem(request, 403, "This is not for you", f"{_sentence(error.message)} Nothing was changed.")
    if isinstance(error, (RequestValidationError, *_NOT_FOUND)):
        message = error.message if isinstance(error, ServiceError) else "no page has that address"
        return _problem(request, 404, "There is no such page", _sentence(message))
    assert isinstance(error, ServiceError)
    if isinstance(error, InvalidRequestError):
        return _problem(request, 400, "That cannot be", _sentence(error.message))
    status_code = 409 if isinstance(error, ConflictError) else 429
    return _problem(request, status_code, "Not now", _sentence(error.message))


def sign_in_page(request: Request, problem: str, *, status_code: int) -> Response:
    sessions: Sessions = request.app.state.parts.sessions
    response = page(
        request,
        "sign_in.html",
        status_code=status_code,
        form_token=sessions.form_token(session_cookie(request)),
        problem=_sentence(problem),
        # Where the visitor was going, a page of ours.
        going_to=request.url.path if request.method == "GET" and not request.url.path.startswith("/sign-") else "/",
    )
    if status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _had_session(request: Request) -> bool:
    sessions: Sessions = request.app.state.parts.sessions
    return sessions.session(request.cookies.get(COOKIE, "")) is not None


def _problem(request: Request, status_code: int, title: str, message: str) -> Response:
    return page(request, "problem.html", status_code=status_code, title=title, message=message)


def _sentence(message: str) -> str:
    return f"{message[0].upper()}{message[1:].rstrip('.')}." if message else ""


def _is_https(request: Request) -> bool:
    return request.url.scheme == "https"
