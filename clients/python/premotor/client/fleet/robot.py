"""One simulated robot: asks at its times, whether or not answers came, and notes what became of each question.

Owns the open loop of one robot. Does not own what its body would have done with the answers (playback.py), which is
worked out afterwards from the stamps: nothing but asking happens while the clock runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from premotor.client.errors import FixRequestError
from premotor.client.fleet.endpoint import Answer, AskError, Endpoint
from premotor.client.fleet.questions import Questions

_CLOSE_TIMEOUT_S = 5.0


@dataclass(kw_only=True, eq=False)
class Ask:
    """One question of one robot; stamps in seconds after the run's start.

    `intended_s` is when the robot looked and meant to ask: latency and a chunk's age are counted from it, wherever the
    question waited. `woke_s` is when this process got to it, `sent_s` when it went out, which is later when the wire
    could carry no more. `answer` is None where `failure` says why. A question that never went out, because a newer one
    took its place, has neither and `sent_s` None.
    """

    intended_s: float
    woke_s: float
    # Whether the wire was full when it was to go out.
    waited: bool = False
    sent_s: float | None = None
    answer: Answer | None = None
    # Handed to the wire, whether or not an answer came.
    request_bytes: int = 0
    # When the answer, or the failure, was there.
    ended_s: float | None = None
    failure: str = ""

    @property
    def latency_s(self) -> float | None:
        return self.ended_s - self.intended_s if self.answer is not None and self.ended_s is not None else None

    @property
    def lag_s(self) -> float:
        """How late this process was, the time in which the wire was full not counted."""
        return (self.woke_s if self.waited or self.sent_s is None else self.sent_s) - self.intended_s


@dataclass(kw_only=True, eq=False)
class RobotLog:
    """What one robot did. In an open loop `asks[number]` is its question of that number."""

    robot: int
    asks: list[Ask] = field(default_factory=list)
    num_reconnections: int = 0
    # The first message of each kind of failure.
    messages: dict[str, str] = field(default_factory=dict)


class Robot:
    """Drives one endpoint, which is open, through its times."""

    def __init__(
        self, number: int, endpoint: Endpoint, questions: Questions, *, start_s: float, timeout_s: float
    ) -> None:
        """`start_s` is the run's start on the monotonic clock."""
        self._endpoint = endpoint
        self._questions = questions
        self._start_s = start_s
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        # The newest question that the wire could not carry yet; an older one is of no use any more.
        self._waiting: tuple[Ask, int] | None = None
        self._fatal: FixRequestError | None = None
        self.log = RobotLog(robot=number)

    async def run(self, times_s: np.ndarray) -> RobotLog:
        """Asks at these times after the start and waits for what is still out, at most its timeout.

        Raises FixRequestError when the server says that no such question can be answered.
        """
        try:
            for number, intended_s in enumerate(times_s.tolist()):
                await asyncio.sleep(self._start_s + intended_s - time.monotonic())
                if self._fatal is not None:
                    break
                ask = Ask(intended_s=intended_s, woke_s=self._now_s())
                self.log.asks.append(ask)
                if len(self._tasks) < self._endpoint.max_in_flight:
                    self._send(ask, number)
                else:
                    ask.waited = True
                    self._waiting = (ask, number)
            while self._tasks:
                await asyncio.wait(self._tasks, timeout=2 * self._timeout_s + _CLOSE_TIMEOUT_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fatal is not None:
            raise self._fatal
        self.log.num_reconnections = self._endpoint.num_reconnections
        return self.log

    async def run_in_turn(self, numbers: Sequence[int]) -> RobotLog:
        """Asks one question after the other, each once the one before has ended. Raises FixRequestError."""
        for number in numbers:
            now_s = self._now_s()
            ask = Ask(intended_s=now_s, woke_s=now_s)
            self.log.asks.append(ask)
            await self._ask(ask, number)
            if self._fatal is not None:
                raise self._fatal
        return self.log

    def _send(self, ask: Ask, number: int) -> None:
        task = asyncio.create_task(self._ask(ask, number))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not task.cancelled():
            self._send(*waiting)

    async def _ask(self, ask: Ask, number: int) -> None:
        question = self._questions.question(self.log.robot, number)

        def sent(num_bytes: int) -> None:
            ask.request_bytes = num_bytes

        ask.sent_s = self._now_s()
        try:
            answer = await self._endpoint.ask(question, timeout_s=self._timeout_s, sent=sent)
        except AskError as error:
            ask.ended_s, ask.failure = self._now_s(), error.kind
            self.log.messages.setdefault(error.kind, str(error))
        except FixRequestError as error:
            ask.ended_s, ask.failure = self._now_s(), type(error).__name__
            self._fatal = error
        else:
            ask.answer, ask.ended_s = answer, answer.received_s - self._start_s

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s
