"""How a model's process reads a request that lies in another one's memory: as it was written, or not at all."""

from __future__ import annotations

import importlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from service.triton.shared_requests import FEWEST_BYTES, SharedRequests
from service.triton.tensors import ELSEWHERE, ELSEWHERE_HEAD, UNREADABLE

REQUEST = os.urandom(FEWEST_BYTES)


@pytest.fixture
def read_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    # Only Triton has it, and only to make answers.
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.delitem(sys.modules, "service.triton.adapter", raising=False)
    return importlib.import_module("service.triton.adapter").read_elsewhere


@pytest.fixture
def sent() -> Iterator[bytes]:
    with SharedRequests(enabled=True).sent([REQUEST]) as sent:
        yield sent


def place(sent: bytes, **changes: int) -> list[int]:
    numbers = dict(zip(ELSEWHERE_HEAD, struct.unpack(f"<{len(ELSEWHERE_HEAD)}q", sent), strict=True)) | changes
    assert numbers["elsewhere"] == ELSEWHERE
    return list(numbers.values())


def test_a_request_is_read_where_it_lies(read_elsewhere: Callable[..., Tensor], sent: bytes) -> None:
    content = read_elsewhere(place(sent), shares_memory=True)
    assert content.dtype is torch.uint8
    assert bytes(content.tolist()) == REQUEST


def test_what_the_model_writes_stays_its_own(read_elsewhere: Callable[..., Tensor], sent: bytes) -> None:
    read_elsewhere(place(sent), shares_memory=True).zero_()
    assert bytes(read_elsewhere(place(sent), shares_memory=True).tolist()) == REQUEST


def test_memory_of_another_request_is_not_taken_for_it(read_elsewhere: Callable[..., Tensor], sent: bytes) -> None:
    with pytest.raises(RuntimeError, match=f"{UNREADABLE}.*given up"):
        read_elsewhere(place(sent, token=1), shares_memory=True)


def test_no_more_is_read_than_there_is(read_elsewhere: Callable[..., Tensor], sent: bytes) -> None:
    with pytest.raises(RuntimeError, match=UNREADABLE):
        read_elsewhere(place(sent, num_bytes=len(REQUEST) + 1_000_000), shares_memory=True)


@pytest.mark.parametrize("what", ["nothing", "a pipe", "a directory"])
def test_a_descriptor_that_is_something_else_by_now_is_refused_at_once(
    read_elsewhere: Callable[..., Tensor], sent: bytes, what: str, tmp_path: Path
) -> None:
    opened = os.pipe() if what == "a pipe" else (os.open(tmp_path, os.O_RDONLY),)
    descriptor = opened[0]
    if what == "nothing":
        os.close(descriptor)
        opened = ()
    try:
        with pytest.raises(RuntimeError, match=UNREADABLE):
            read_elsewhere(place(sent, file_descriptor=descriptor), shares_memory=True)
    finally:
        for each in opened:
            os.close(each)


def test_a_model_that_shares_no_memory_opens_nothing(read_elsewhere: Callable[..., Tensor], sent: bytes) -> None:
    with pytest.raises(RuntimeError, match="whole requests only"):
        read_elsewhere(place(sent), shares_memory=False)
