"""LeRobot's PolicyServer, through a driver in LeRobot's own environment (lerobot_driver.py).

Owns what is said to the driver. Nothing is unpickled in this process.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from premotor.client.fleet.endpoint import Answer
from premotor.client.fleet.pipe import PipeProgram
from premotor.client.fleet.questions import Question

_DRIVER = Path(__file__).resolve().parents[1] / "lerobot_driver.py"


def lerobot_driver(python: str) -> PipeProgram:
    """Shared by the robots of a worker. `python` is that of an environment with LeRobot."""
    return PipeProgram((python, "-I", "-W", "ignore", str(_DRIVER)), remedy="run `make peers`")


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

    async def ask(self, question: Question, *, timeout_s: float) -> Answer:
        header = {
            "verb": "ask",
            "robot": self._robot,
            "view": question.view,
            "state": [float(value) for value in question.state],
            "instruction": question.instruction,
            "timeout_s": timeout_s,
        }
        told, content = await self._driver.call(header, b"", timeout_s=timeout_s + 1.0)
        return Answer(
            actions=np.frombuffer(content, np.float32).reshape(told["shape"]).copy(),
            request_bytes=told["request_bytes"],
            response_bytes=told["response_bytes"],
            # The driver's stamp: the way from there to here is not LeRobot's.
            received_s=min(told["received_s"], time.monotonic()),
        )

    async def close(self) -> None:
        """The driver ends its connections with itself."""
