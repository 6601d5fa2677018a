from __future__ import annotations

import threading

import pytest
import torch

from training.prefetch import Prefetch


def test_each_step_gets_its_batch_and_none_is_made_past_the_last() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * 10

    with Prefetch(make, first=3, last=6) as batches:
        assert [batches.take(step) for step in (3, 4, 5)] == [30, 40, 50]
    assert made == [3, 4, 5]


def test_the_next_batch_is_made_while_this_one_is_used() -> None:
    reached = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            reached.set()
        return step

    with Prefetch(make, first=0, last=2) as batches:
        batches.take(0)
        assert reached.wait(timeout=30)


def test_a_batch_that_fails_fails_the_step_that_takes_it() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("frames 7 to 9 of a pack of 5")
        return step

    with Prefetch(make, first=0, last=3) as batches:
        assert batches.take(0) == 0
        with pytest.raises(ValueError, match="of a pack of 5"):
            batches.take(1)


def test_steps_are_taken_in_order() -> None:
    with Prefetch(lambda step: step, first=0, last=1) as batches:
        with pytest.raises(ValueError, match="step is 1, expected 0"):
            batches.take(1)
        batches.take(0)
        with pytest.raises(ValueError, match="step is 1, expected none"):
            batches.take(1)


def test_waiting_is_counted() -> None:
    with Prefetch(lambda step: step, first=0, last=2) as batches:
        assert batches.waited_s == 0.0
        batches.take(0)
        first = batches.waited_s
        batches.take(1)
        assert 0.0 < first < batches.waited_s


def test_it_works_on_one_thread_and_leaves_the_training_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Prefetch(lambda step: torch.get_num_threads(), first=0, last=1) as batches:
            assert batches.take(0) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
