"""The same Policy in this process: for machines that Triton does not run on, and for debugging.

Owns collecting what waits into a batch, whose turn it is and the one thread that runs the models; robots go before the
copies of a shadow. Loading has a thread of its own. Does not own the model (policy/).
The only module of the service, beside Triton's adapter, that imports torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from policy.checkpoint import CheckpointError
from policy.embodiment import EmbodimentSpec
from policy.instructions import InstructionTooLongError
from policy.policy import Policy
from policy.request import ChunkRequest, RealTimeChunking
from service.backend import (
    BackendChunk,
    BackendDeadlineError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
    InstructionRefusedError,
)
from service.background import in_background
from service.inference import BatchAnswer, load_policy, predict_batch
from service.model_settings import ModelSettings
from service.revision import Revision, RevisionError


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """One revision."""

    policy: Policy
    specs: tuple[EmbodimentSpec, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    model: _Model
    request: BackendRequest
    deadline_s: float
    # The chunk, the seconds of its forward passes and how many requests they were for.
    answer: asyncio.Future[tuple[Tensor | Exception, float, int]]


class LocalBackend:
    """A Backend in process. One thread runs all revisions, a batch at a time; the event loop never waits for it."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._models: dict[str, _Model] = {}
        # Of all revisions, in the order in which they came; and those whose batch runs now.
        self._waiting: list[_Waiting] = []
        self._running: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        # OpenMP's thread count belongs to the thread that calls torch.
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="policy", initializer=torch.set_num_threads, initargs=(settings.threads,)
        )
        self._closed = False

    async def start(self) -> None:
        """Begins to run what comes."""
        self._worker = asyncio.create_task(self._work(), name="local backend")

    async def load(self, revision: Revision) -> None:
        """Loads and probes a revision beside those that answer. Raises RevisionError with what is wrong with it."""
        policy = await asyncio.to_thread(in_background, partial(self._load, revision))
        self._models[revision.revision] = _Model(policy=policy, specs=tuple(policy.embodiments.values()))

    def capacity(self, revision: str) -> int:
        return self._settings.capacity

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        model = self._models.get(revision)
        if model is None or self._closed:
            raise BackendUnavailableError(f"revision {revision} is not loaded")
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        waiting = _Waiting(model=model, request=request, deadline_s=started_s + timeout_s, answer=loop.create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            async with asyncio.timeout_at(waiting.deadline_s):
                chunk, inference_s, batch_size = await waiting.answer
        except TimeoutError:
            raise BackendDeadlineError(f"no chunk within {timeout_s:.3f} s") from None
        if isinstance(chunk, InstructionTooLongError):
            raise InstructionRefusedError(str(chunk))
        if isinstance(chunk, Exception):
            raise BackendFailedError(f"{type(chunk).__name__}: {chunk}")
        queue_s = max(0.0, loop.time() - started_s - inference_s)
        return BackendChunk(actions=chunk.numpy(), inference_s=inference_s, queue_s=queue_s, batch_size=batch_size)

    async def ready(self, revision: str) -> bool:
        return revision in self._models and not self._closed

    async def unload(self, revision: str) -> None:
        """What still waits for it ends as unavailable. One that is not loaded is no error."""
        model = self._models.pop(revision, None)
        self._end("the revision was unloaded", [each for each in self._unanswered if each.model is model])

    async def close(self) -> None:
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._models.clear()
        self._end("the backend is closing", self._unanswered)
        # A forward that still runs ends by itself; nobody waits for its answer.
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def _unanswered(self) -> list[_Waiting]:
        return [each for each in (*self._running, *self._waiting) if not each.answer.done()]

    def _end(self, reason: str, waiting: Sequence[_Waiting]) -> None:
        for each in waiting:
            each.answer.set_exception(BackendUnavailableError(reason))

    def _load(self, revision: Revision) -> Policy:
        torch.set_num_threads(self._settings.threads)
        try:
            return load_policy(
                revision.directory,
                device=self._settings.device,
                dtype=self._settings.dtype,
                largest_batch=self._settings.largest_batch,
            )
        except CheckpointError as error:
            raise RevisionError(str(error)) from error

    async def _work(self) -> None:
        """Runs what waits, as long as there is something."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # Kept until answered: `close` must find everyone who waits.
            self._running = self._next_batch(loop.time())
            if self._running:
                await self._run_batch()
            else:
                self._arrived.clear()

    async def _run_batch(self) -> None:
        """Answers those who run. In a frame of its own, which ends with it: a model that is unloaded must be free."""
        model, requests = self._running[0].model, [waiting.request for waiting in self._running]
        answer = await asyncio.get_running_loop().run_in_executor(self._executor, _run, model, requests)
        for waiting, chunk in zip(self._running, answer.chunks, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result((chunk, answer.inference_ns / 1e9, answer.batch_size))

    def _next_batch(self, now_s: float) -> list[_Waiting]:
        """Of one revision, whoever came first; of a shadow when no robot waits. Leaves out who is too late."""
        unanswered = [each for each in self._waiting if not each.answer.done() and each.deadline_s > now_s]
        turn = [each for each in unanswered if not each.request.is_shadow] or unanswered
        batch = [each for each in turn if each.model is turn[0].model][: self._settings.largest_batch]
        self._waiting = [each for each in unanswered if each not in batch]
        return batch


def _run(model: _Model, requests: Sequence[BackendRequest]) -> BatchAnswer:
    return predict_batch(model.policy, [partial(to_chunk_request, model.specs, request) for request in requests])


def to_chunk_request(specs: Sequence[EmbodimentSpec], request: BackendRequest) -> ChunkRequest:
    """A backend request as the policy takes it. Copies: the arrays may be read-only, which torch has no word for."""
    spec = specs[request.embodiment_index]
    return ChunkRequest(
        embodiment=spec.name,
        images={name: _tensor(frame) for name, frame in zip(spec.camera_names, request.images, strict=True)},
        state=_tensor(request.state),
        instruction=request.instruction,
        history_states=_tensor(request.history_states),
        history_actions=_tensor(request.history_actions),
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        real_time_chunking=_chunking(request),
    )


def _chunking(request: BackendRequest) -> RealTimeChunking | None:
    if request.real_time_chunking is None:
        return None
    return RealTimeChunking(
        previous_actions=_tensor(request.real_time_chunking.previous_actions),
        inference_delay=request.real_time_chunking.inference_delay,
        execution_horizon=request.real_time_chunking.execution_horizon,
        method=request.real_time_chunking.method,
        max_guidance_weight=request.real_time_chunking.max_guidance_weight,
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())
