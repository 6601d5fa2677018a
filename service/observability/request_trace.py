"""The trace that the request at hand belongs to.

Owns the one place where a request's trace is found by whatever works for it: metrics, logs, the way to Triton. Knows no
tracing library: without one there is no trace, and asking costs a look-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class RequestTrace(Protocol):
    """One request's part of a trace, being recorded."""

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        ...

    @property
    def traceparent(self) -> str:
        """What the next process is to be told, as W3C's Trace Context has it."""
        ...

    def stage(
        self, name: str, started_s: float, ended_s: float, attributes: Mapping[str, str | int | float] | None = None
    ) -> None:
        """A span within the request, by the clock of time.perf_counter."""
        ...


_CURRENT: ContextVar[RequestTrace | None] = ContextVar("premotor_request_trace", default=None)


def current_trace() -> RequestTrace | None:
    """Of the request that this task works for; None when it is not recorded."""
    return _CURRENT.get()


@contextmanager
def recorded(trace: RequestTrace) -> Iterator[None]:
    """`trace` is the current one inside."""
    token = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(token)
