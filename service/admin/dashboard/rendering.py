"""Templates to responses, and the files that pages are made of.

Owns what every page carries: its headers, its style sheet and script, and how numbers are written for people. Does not
own what is on a page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).resolve().parent
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing inline, nothing from elsewhere, in nobody's frame.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not "no-referrer", with which browsers send forms without saying where they come from.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def _read_files() -> dict[str, tuple[bytes, str]]:
    """Content and media type by a name that changes with the content."""
    files = {}
    for path in sorted((_HERE / "static").iterdir()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        files[f"{path.stem}.{digest}{path.suffix}"] = content, _MEDIA_TYPES[path.suffix]
    return files


# Read once, when the service starts.
_FILES = _read_files()
_NAMES = {f"{name.split('.')[0]}.{name.split('.')[2]}": name for name in _FILES}
static_files = APIRouter(include_in_schema=False)


@static_files.get("/static/{name}")
async def static_file(name: str) -> Response:
    """Open to everybody: the page to sign in looks like the others."""
    content, media_type = _FILES.get(name, (b"", ""))
    if not media_type:
        return Response(status_code=404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=media_type, headers=headers)


def page(request: Request, template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """A whole page, or a part of one. `context` is what the template names."""
    content = _ENVIRONMENT.get_template(template).render(path=request.url.path, **context)
    return HTMLResponse(content, status_code=status_code, headers=PAGE_HEADERS)


def milliseconds(seconds: float) -> str:
    """Three digits at most where they matter: 0.35 ms, 4.2 ms, 35 ms, 2.3 s."""
    value = 1000 * seconds
    if value >= 1000:
        return f"{seconds:.1f} s"
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def percent(share: float) -> str:
    """Whole percents where they are whole."""
    return f"{round(100 * share, 1):g} %"


def detail(value: Any) -> str:
    """What an audit entry adds: shares by revision, or a text."""
    if isinstance(value, Mapping) and all(isinstance(share, float) for share in value.values()):
        return ", ".join(f"{revision} {percent(share)}" for revision, share in value.items())
    return str(value)


def size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes} bytes"


def rate(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s < 100 else f"{per_s:.0f}"


def moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S")


def segment(text: str) -> str:
    """A text as one part of a path."""
    return quote(text, safe="")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for show in (milliseconds, percent, detail, size, rate, moment, clock, segment, counted):
        environment.filters[show.__name__] = show
    environment.globals["static"] = lambda name: f"/static/{_NAMES[name]}"
    return environment


_ENVIRONMENT = _environment()
