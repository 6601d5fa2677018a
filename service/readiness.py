"""Whether a revision can answer, asked of the backend with a bound on the wait.

Owns the one question that the gateway's health and the admin plane's readiness share. Does not own probing: a backend
reports a revision as ready once its probe has passed.
"""

from __future__ import annotations

import asyncio
import logging

from service.backend import Backend

_logger = logging.getLogger(__name__)


async def revision_ready(backend: Backend, revision: str, *, timeout_s: float) -> bool:
    """False when the backend says so, does not say in time, or fails to say."""
    try:
        async with asyncio.timeout(timeout_s):
            return await backend.ready(revision)
    except TimeoutError:
        return False
    except Exception:  # the edge: a backend that breaks its promise must not end the loop that reports it
        _logger.exception("readiness check failed", extra={"fields": {"revision": revision}})
        return False
