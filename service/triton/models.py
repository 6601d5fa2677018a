"""How models come into a tritonserver and leave it: by this process, or by another one whose Triton it shares.

Owns the two ways. Does not own when a model is wanted, nor its probe (backend.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from service.backend import BackendError, BackendRequest, BackendUnavailableError
from service.model_settings import ModelSettings
from service.revision import Revision
from service.triton.client import ModelGoneError, TritonClient
from service.triton.repository import remove_model, write_model

# Each holds its weights twice while they are read; and one that hangs must not keep all others from being loaded.
_LOADS_AT_A_TIME = 2
_UNLOAD_TIMEOUT_S = 2.0
_READY_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.1

_logger = logging.getLogger(__name__)


class TritonModels(Protocol):
    """`model` is the name that a revision has in Triton."""

    async def load(
        self, client: TritonClient, model: str, revision: Revision, request: BackendRequest, *, timeout_s: float
    ) -> None:
        """Returns once the model of a revision can be asked; `request` is one that it should answer.

        Raises RevisionError for a bad checkpoint, BackendError when there is no verdict.
        """
        ...

    async def unload(self, client: TritonClient | None, model: str) -> None:
        """Leaves nothing of it, whether it was loaded or not; `client` is None while Triton is away."""
        ...


class OwnModels:
    """This process writes the model repository, and tells Triton to load and unload."""

    def __init__(self, repository: Path, settings: ModelSettings, *, shares_memory: bool = False) -> None:
        """`shares_memory`: whether models read requests out of the memory of who asks."""
        self._repository, self._settings, self._shares_memory = repository, settings, shares_memory
        self._lanes = asyncio.Semaphore(_LOADS_AT_A_TIME)

    async def load(
        self, client: TritonClient, model: str, revision: Revision, request: BackendRequest, *, timeout_s: float
    ) -> None:
        """Rewriting the files makes Triton load a model again that it still has."""
        async with self._lanes:
            try:
                write_model(
                    self._repository, model, revision.directory, self._settings, shares_memory=self._shares_memory
                )
            except OSError as error:  # a full disk, or an unreachable one, says nothing of the checkpoint
                raise BackendUnavailableError(f"the model repository cannot be written: {error}") from None
            await client.load(model, timeout_s=timeout_s)

    async def unload(self, client: TritonClient | None, model: str) -> None:
        if client is not None:
            await unload_model(client, model)
        remove_model(self._repository, model)


class AnothersModels:
    """Another process loads, restarts and unloads what all of them ask; this one waits until a model answers."""

    def __init__(self, report_dead: Callable[[str], None]) -> None:
        """`report_dead` tells that process of a revision whose model is gone, which it may not have noticed."""
        self._report_dead = report_dead

    async def load(
        self, client: TritonClient, model: str, revision: Revision, request: BackendRequest, *, timeout_s: float
    ) -> None:
        reported = False
        try:
            async with asyncio.timeout(timeout_s):
                while not client.is_closed:
                    try:
                        if await client.is_ready(model, timeout_s=_READY_TIMEOUT_S):
                            await client.infer(model, request, timeout_s=timeout_s)
                            return
                        gone = True
                    except BackendUnavailableError as error:
                        gone = isinstance(error, ModelGoneError)
                    if gone and not reported:
                        self._report_dead(revision.revision)
                        reported = True
                    await asyncio.sleep(_POLL_INTERVAL_S)
        except TimeoutError:
            raise BackendUnavailableError(
                f"revision {revision.revision} was not loaded by this service's first process within {timeout_s:g} s"
            ) from None
        raise BackendUnavailableError("Triton was lost before the revision was loaded")

    async def unload(self, client: TritonClient | None, model: str) -> None:
        """Nothing: whoever loaded it unloads it."""


async def unload_model(client: TritonClient, model: str) -> None:
    """One that Triton does not unload is only logged: it is about to stop anyway, or is its owner's to mend."""
    try:
        await client.unload(model, timeout_s=_UNLOAD_TIMEOUT_S)
    except BackendError as error:
        _logger.debug("unload failed", extra={"fields": {"model": model, "error": str(error)}})
