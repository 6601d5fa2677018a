"""One robot's way to ask, whatever the wire: `ask` takes an observation and returns a chunk.

Owns the protocol between a simulated robot and a wire, and the names of failures. The wires are in endpoints/.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np

from premotor.client.back_off import BackOff
from premotor.client.fleet.questions import Question

# A fleet's robots come back one by one, soon.
_BACK_OFF = BackOff(max_s=1.0)

# Told how many bytes a request has as it goes out, whether or not an answer comes.
Sent: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """A chunk, float32 [action_horizon, action_dim], and what the wire tells about it.

    `revision` is empty where the wire has no word for it. `server_s` holds those of decode, queue, inference and total
    that the server says, in seconds of its own clock. Bytes are those of messages, without what gRPC, HTTP, TCP and TLS
    add. `received_s`, on the monotonic clock, is when `actions` was the array it is: on every wire what its client does
    to an answer is part of the way.
    """

    actions: np.ndarray
    revision: str = ""
    server_s: Mapping[str, float] = field(default_factory=dict)
    response_bytes: int
    received_s: float


class AskError(Exception):
    """No chunk came. `kind` is what failures are counted by."""

    def __init__(self, kind: str, message: str) -> None:
        # Both, so that it crosses to the process that started this one.
        super().__init__(kind, message)
        self.kind = kind

    def __str__(self) -> str:
        return self.args[1]


class MissingPeerError(Exception):
    """What this wire needs is not here. The message says what, and how it is had."""


class Endpoint(Protocol):
    """One robot's connection. `ask` may be called `max_in_flight` times at once."""

    @property
    def max_in_flight(self) -> int: ...

    @property
    def num_reconnections(self) -> int:
        """How often a connection that had been lost came back."""
        ...

    async def open(self, *, timeout_s: float) -> None:
        """Connects. Raises AskError, or MissingPeerError."""
        ...

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        """Raises AskError; FixRequestError for a question that no server of this policy could answer."""
        ...

    async def close(self) -> None: ...


class Reconnection:
    """When a connection that was lost may be tried again, and how often it came back. Knows no clock."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._num_failures = 0
        self._not_before_s = 0.0
        self.count = 0

    def may_try(self, now_s: float) -> bool:
        return now_s >= self._not_before_s

    def lost(self, now_s: float) -> None:
        self._num_failures += 1
        self._not_before_s = now_s + _BACK_OFF.delay_s(self._num_failures, self._generator)

    def found(self) -> None:
        self.count += self._num_failures > 0
        self._num_failures, self._not_before_s = 0, 0.0
