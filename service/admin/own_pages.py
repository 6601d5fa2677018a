"""Requests that a browser was told to make by somebody else's page.

Owns their refusal, on every route alike. A browser says where a request comes from and what it was sent to, and no page
can change that; a program that is none says nothing of the first. Without this, any page an operator opens could roll
back a service on their loopback that asks for no token, or read it, once its own name is made to stand for loopback.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.credentials.exposure import is_loopback

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class ChangesFromOwnPages:
    """ASGI middleware: what is no read must come from a page of this server, or from no page at all."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READS and _is_foreign(Headers(scope=scope)):
            problem = {"message": "a page of another site asked for this, and may not", "field": ""}
            await JSONResponse(problem, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class OwnNames:
    """ASGI middleware: while nobody needs a token, loopback is asked by a name that is always loopback, or by its own.

    A name that its owner points at loopback (DNS rebinding) makes their page one of this server's, for the browser.
    """

    def __init__(self, app: ASGIApp, *, listen_host: str, needs_token: Callable[[], bool]) -> None:
        """Beyond loopback there is nothing to keep: whoever reaches it may ask it."""
        self._app = app
        self._listen_host, self._needs_token = listen_host.lower(), needs_token
        self._keeps = is_loopback(listen_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and self._keeps
            and not self._needs_token()
            and not self._knows(Headers(scope=scope))
        ):
            message = "asked by a name that may be another's; ask for localhost, or make a token that is then needed"
            await JSONResponse({"message": message, "field": ""}, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        # No browser leaves it out.
        try:
            name = urlsplit(f"//{headers.get('host', 'localhost')}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name.removesuffix(".")) or name == self._listen_host


def _is_foreign(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != headers.get("host", "")
    except ValueError:
        return True
