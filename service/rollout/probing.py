"""A revision's probe, asked again of a backend that has it.

Owns the one question. Does not own the comparison (probe.py), nor what follows from a failure: who serves serves on.
"""

from __future__ import annotations

import asyncio

from service.backend import Backend
from service.model_settings import ModelSettings
from service.probe import ProbeError, read_probe
from service.revision import Revision, RevisionError


async def probe_again(backend: Backend, revision: Revision, model: ModelSettings, *, timeout_s: float) -> None:
    """Raises RevisionError when an answer is not the recorded one, BackendError when none comes.

    Each of its cases gets `timeout_s`.
    """
    for case in await asyncio.to_thread(read_probe, revision):
        chunk = await backend.predict(revision.revision, case.request, timeout_s=timeout_s)
        try:
            case.check(chunk, dtype=model.dtype)
        except ProbeError as error:
            raise RevisionError(str(error)) from None
