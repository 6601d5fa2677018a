"""The same Policy in this process: for machines that Triton does not run on, and for debugging.

Owns collecting what waits into a batch and the one worker thread that runs the model. Does not own the model (policy/).
The only module of the service, beside Triton's adapter, that imports torch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from policy.checkpoint import CheckpointError
from policy.embodiment import EmbodimentSpec
from policy.policy import Policy
from policy.request import ChunkRequest, RealTimeChunking
from service.backend import (
    BackendChunk,
    BackendDeadlineError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
)
from service.inference import BatchAnswer, load_policy, predict_batch
from service.model_settings import ModelSettings
from service.revision import Revision, RevisionError


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    request: BackendRequest
    deadline_s: float
    # The chunk, the seconds of its forward passes and how many requests they were for.
    answer: asyncio.Future[tuple[Tensor | Exception, float, int]]


class _Model:
    """One revision and the requests that wait for it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.specs = tuple(policy.embodiments.values())
        self.waiting: deque[_Waiting] = deque()
        self.running: list[_Waiting] = []
        self.arrived = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None


class LocalBackend:
    """A Backend in process. One thread runs all revisions, a batch at a time; the event loop never waits for it."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._models: dict[str, _Model] = {}
        # OpenMP's thread count belongs to the thread that calls torch.
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="policy", initializer=torch.set_num_threads, initargs=(settings.threads,)
        )
        self._closed = False

    async def start(self) -> None:
        """Nothing: there is no process to start."""

    async def load(self, revision: Revision) -> None:
        """Loads and probes a revision. Raises RevisionError with what is wrong with its checkpoint."""
        loop = asyncio.get_running_loop()
        model = _Model(await loop.run_in_executor(self._executor, self._load, revision))
        model.worker = loop.create_task(self._work(model))
        self._models[revision.revision] = model

    def capacity(self, revision: str) -> int:
        return self._settings.capacity

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        model = self._models.get(revision)
        if model is None or self._closed:
            raise BackendUnavailableError(f"revision {revision} is not loaded")
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        waiting = _Waiting(request=request, deadline_s=started_s + timeout_s, answer=loop.create_future())
        model.waiting.append(waiting)
        model.arrived.set()
        try:
            async with asyncio.timeout_at(waiting.deadline_s):
                chunk, inference_s, batch_size = await waiting.answer
        except TimeoutError:
            raise BackendDeadlineError(f"no chunk within {timeout_s:.3f} s") from None
        if isinstance(chunk, Exception):
            raise BackendFailedError(f"{type(chunk).__name__}: {chunk}")
        queue_s = max(0.0, loop.time() - started_s - inference_s)
        return BackendChunk(actions=chunk.numpy(), inference_s=inference_s, queue_s=queue_s, batch_size=batch_size)

    async def ready(self, revision: str) -> bool:
        return revision in self._models and not self._closed

    async def unload(self, revision: str) -> None:
        """What still waits for it ends as unavailable. One that is not loaded is no error."""
        model = self._models.pop(revision, None)
        if model is not None:
            await self._end(model, "the revision was unloaded")

    async def close(self) -> None:
        self._closed = True
        for model in self._models.values():
            await self._end(model, "the backend is closing")
        self._models.clear()
        # A forward that still runs ends by itself; nobody waits for its answer.
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _end(self, model: _Model, reason: str) -> None:
        if model.worker is not None:
            model.worker.cancel()
            await asyncio.gather(model.worker, return_exceptions=True)
        for waiting in (*model.running, *model.waiting):
            if not waiting.answer.done():
                waiting.answer.set_exception(BackendUnavailableError(reason))

    def _load(self, revision: Revision) -> Policy:
        try:
            return load_policy(
                revision.directory,
                device=self._settings.device,
                dtype=self._settings.dtype,
                largest_batch=self._settings.largest_batch,
            )
        except CheckpointError as error:
            raise RevisionError(str(error)) from error

    async def _work(self, model: _Model) -> None:
        """Runs what waits, in the order in which it came, as long as there is something."""
        loop = asyncio.get_running_loop()
        while True:
            await model.arrived.wait()
            batch = self._take(model, loop.time())
            if not batch:
                model.arrived.clear()
                continue
            # Kept until answered: `close` must find everyone who waits.
            model.running = batch
            requests = [waiting.request for waiting in batch]
            answer = await loop.run_in_executor(self._executor, _run, model.policy, model.specs, requests)
            for waiting, chunk in zip(batch, answer.chunks, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result((chunk, answer.inference_ns / 1e9, answer.batch_size))

    def _take(self, model: _Model, now_s: float) -> list[_Waiting]:
        """The next batch; whoever has given up or is too late is left out."""
        batch: list[_Waiting] = []
        while model.waiting and len(batch) < self._settings.largest_batch:
            waiting = model.waiting.popleft()
            if not waiting.answer.done() and waiting.deadline_s > now_s:
                batch.append(waiting)
        return batch


def _run(policy: Policy, specs: Sequence[EmbodimentSpec], requests: Sequence[BackendRequest]) -> BatchAnswer:
    return predict_batch(policy, [partial(to_chunk_request, specs, request) for request in requests])


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
