"""The next step's batch, made while this step is computed. Batches are pure functions of a step: nothing to resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import torch

_Batch = TypeVar("_Batch")


class Prefetch(Generic[_Batch]):
    """Batches of steps `first` to `last` - 1, one step ahead, in a thread that lives as long as the `with` block."""

    def __init__(self, make: Callable[[int], _Batch], *, first: int, last: int) -> None:
        self._make, self._last = make, last
        # torch's number of threads is each thread's own: a second team would fight the training's for its cores.
        self._thread = ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,))
        self._next: tuple[int, Future[_Batch]] | None = None
        self._submit(first)
        self.waited_s = 0.0  # in all calls of `take` so far

    def take(self, step: int) -> _Batch:
        """The batch of `step`, which is the first or follows the last one taken. Raises what making it raised."""
        if self._next is None or self._next[0] != step:
            raise ValueError(f"step is {step}, expected {'none' if self._next is None else self._next[0]}")
        started = time.monotonic()
        batch = self._next[1].result()
        self.waited_s += time.monotonic() - started
        self._submit(step + 1)
        return batch

    def _submit(self, step: int) -> None:
        self._next = (step, self._thread.submit(self._make, step)) if step < self._last else None

    def __enter__(self) -> Prefetch[_Batch]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._thread.shutdown(cancel_futures=True)
