"""LeRobot's PolicyServer, through a driver in LeRobot's own environment (lerobot_driver.py).

Owns what is said to the driver, and what the way to it costs. Nothing is unpickled in this process.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from premotor.client.fleet.endpoint import Answer, Sent
from premotor.client.fleet.pipe import PipeProgram, ProgramError
from premotor.client.fleet.questions import Question

_DRIVER = Path(__file__).resolve().parents[1] / "lerobot_driver.py"
_EMPTY_QUESTIONS = 30
# Between two of them: a driver that has just been asked is quicker than one that has slept.
_EMPTY_PAUSE_S = 0.01
_EMPTY_TIMEOUT_S = 10.0


def lerobot_driver(python: str) -> PipeProgram:
    """Shared by the robots of a worker. `python` is that of an environment with LeRobot."""
    return PipeProgram((python, "-I", "-W", "ignore", str(_DRIVER)), remedy="run `make peers`")


async def empty_pipe_s(driver: PipeProgram, question: Question) -> float:
    """Seconds until the driver has a question in its hands: the median of some that it then does nothing with.

    LeRobot's latencies hold this once, for it is no part of LeRobot; the way back is not in them.
    """
    spans_s = []
    for _ in range(_EMPTY_QUESTIONS):
        await asyncio.sleep(_EMPTY_PAUSE_S)
        sent_s = time.monotonic()
        told, _ = await driver.call(_header("empty", 0, question, 0.0), b"", timeout_s=_EMPTY_TIMEOUT_S)
        spans_s.append(told["received_s"] - sent_s)
    return float(np.median(spans_s))


class LerobotEndpoint:
    """One robot of the driver. Its server has a queue of one and answers whoever asks, so one question at a time."""

    max_in_flight = 1
    num_reconnections = 0

    def __init__(self, driver: PipeProgram, address: str, *, robot: int) -> None:
        self._driver = driver
        self._address = address
        self._robot = robot

    async def open(self, *, timeout_s: float) -> None:
        header = {"verb": "open", "robot": self._robot, "address": self._address, "timeout_s": timeout_s}
        await self._driver.call(header, b"", timeout_s=2 * timeout_s)

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        header = _header("ask", self._robot, question, timeout_s)
        try:
            told, content = await self._driver.call(header, b"", timeout_s=timeout_s + 1.0)
        except ProgramError as error:
            sent(error.told.get("request_bytes", 0))
            raise
        sent(told["request_bytes"])
        return Answer(
            actions=np.frombuffer(content, np.float32).reshape(told["shape"]).copy(),
            response_bytes=told["response_bytes"],
            # The driver's stamp: the way from there to here is not LeRobot's.
            received_s=min(told["received_s"], time.monotonic()),
        )

    async def close(self) -> None:
        """The driver ends its connections with itself."""


def _header(verb: str, robot: int, question: Question, timeout_s: float) -> dict[str, Any]:
    return {
        "verb": verb,
        "robot": robot,
        "view": question.view,
        "state": [float(value) for value in question.state],
        "instruction": question.instruction,
        "timeout_s": timeout_s,
    }
