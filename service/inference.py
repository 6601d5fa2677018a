"""One batch through a Policy, however the requests came: the same few lines inside Triton and in process.

Owns what a failure inside a batch does to its neighbours, which is nothing. Does not own how requests are collected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from policy.checkpoint import load_probe
from policy.policy import Dtype, Policy
from policy.request import ChunkRequest, RealTimeChunking


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchAnswer:
    """What became of each request, in order, how long the forward passes took and how many requests shared them."""

    # float32 [action_horizon, action_dim] on the CPU, or why there is none.
    chunks: tuple[Tensor | Exception, ...]
    inference_ns: int
    batch_size: int


def load_policy(directory: Path, *, device: str, dtype: Dtype, largest_batch: int) -> Policy:
    """Loaded, probed, and run once at every size of batch: no robot pays for a first time. Raises CheckpointError."""
    policy = Policy.from_checkpoint(directory, device=device, dtype=dtype)
    probed = load_probe(directory)[0]
    for batch_size in range(1, largest_batch + 1):
        for request in _kinds(policy, *probed):
            policy.predict_chunk([request] * batch_size)
    return policy


def _kinds(policy: Policy, plain: ChunkRequest, chunk: Tensor) -> list[ChunkRequest]:
    """A request of each kind that is computed in its own way, `chunk` what the plain one gives.

    One Euler step tells of all. Without this the first gradient of a process came 0.3 s late.
    """
    methods: list[Literal["guidance", "prefix"]] = ["guidance"]
    if policy.config.max_inference_delay:
        methods.append("prefix")
    delay = min(1, policy.config.action_horizon - 1)
    chunkings = [
        RealTimeChunking(previous_actions=chunk, inference_delay=delay, execution_horizon=1, method=method)
        for method in methods
    ]
    return [plain, *(replace(plain, num_inference_steps=1, real_time_chunking=each) for each in chunkings)]


def predict_batch(policy: Policy, requests: Sequence[Callable[[], ChunkRequest]]) -> BatchAnswer:
    """Reads each request and runs one forward for all that fit the policy. Never raises an Exception."""
    answers: dict[int, Tensor | Exception] = {}
    batch: dict[int, ChunkRequest] = {}
    for position, request in enumerate(requests):
        try:
            batch[position] = _read(policy, request)
        except Exception as error:  # the edge of the model: a request that cannot be read is answered by its own error
            answers[position] = error
    started_ns = time.perf_counter_ns()
    answers |= zip(batch, _forward(policy, list(batch.values())), strict=True)
    inference_ns, batch_size = time.perf_counter_ns() - started_ns, len(batch)
    # An error that is answered refers to this frame, and would keep what its neighbours hold until it is collected.
    batch.clear()
    return BatchAnswer(
        chunks=tuple(answers[position] for position in range(len(requests))),
        inference_ns=inference_ns,
        batch_size=batch_size,
    )


def _read(policy: Policy, request: Callable[[], ChunkRequest]) -> ChunkRequest:
    """Refused here, a request costs the others of its batch nothing."""
    asked = request()
    policy.check(asked)
    return asked


def _forward(policy: Policy, requests: list[ChunkRequest]) -> list[Tensor | Exception]:
    """One forward; when that fails, one each, so that a request which cannot be answered fails alone."""
    try:
        return [chunk.to("cpu") for chunk in policy.predict_chunk(requests)]
    except Exception as error:  # the edge of the model: whatever it raises is an answer, never the end of the process
        return [error] if len(requests) == 1 else [_forward(policy, [request])[0] for request in requests]
