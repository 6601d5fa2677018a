"""One batch through a policy, and what a request that cannot be read leaves behind: nothing."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from policy.checkpoint import load_probe
from policy.instructions import InstructionTooLongError
from policy.policy import Policy
from policy.request import ChunkRequest
from service.inference import predict_batch


@pytest.fixture(scope="module")
def policy(toy_checkpoint: Path) -> Policy:
    return Policy.from_checkpoint(toy_checkpoint)


def unreadable() -> ChunkRequest:
    raise RuntimeError("gone")


def test_a_request_that_is_refused_costs_its_neighbours_no_forward(
    policy: Policy, toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, chunk = load_probe(toy_checkpoint)[0]
    batches: list[int] = []
    predict_chunk = policy.predict_chunk
    monkeypatch.setattr(policy, "predict_chunk", lambda batch: batches.append(len(batch)) or predict_chunk(batch))
    answer = predict_batch(policy, [lambda: asked, lambda: replace(asked, instruction="1" * 129), lambda: asked])
    first, error, last = answer.chunks
    assert isinstance(error, InstructionTooLongError)
    assert batches == [2] and answer.batch_size == 2
    assert isinstance(first, torch.Tensor) and isinstance(last, torch.Tensor)
    torch.testing.assert_close(first, chunk, rtol=0, atol=1e-5)


def test_what_the_neighbours_of_an_error_hold_goes_with_them(policy: Policy, toy_checkpoint: Path) -> None:
    asked, chunk = load_probe(toy_checkpoint)[0]
    held: list[weakref.ref[ChunkRequest]] = []

    def read() -> ChunkRequest:
        request = ChunkRequest(**{name: getattr(asked, name) for name in asked.__dataclass_fields__})
        held.append(weakref.ref(request))
        return request

    gc.collect()
    gc.disable()
    try:
        answer = predict_batch(policy, [read, unreadable, read])
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()
    first, error, last = answer.chunks
    assert isinstance(first, torch.Tensor) and isinstance(last, torch.Tensor)
    torch.testing.assert_close(first, chunk, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, chunk, rtol=0, atol=1e-5)
    assert isinstance(error, RuntimeError)
    assert answer.batch_size == 2
