"""Changes that a browser was told to ask for by somebody else's page.

Owns their refusal, on every route alike. A browser says where a request comes from, and no page can change that; a
program that is none says nothing. Without this, any page an operator opens could roll back a service on their loopback
that asks for no token.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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


def _is_foreign(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")
