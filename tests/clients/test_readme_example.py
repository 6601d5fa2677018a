"""The README's ten lines for a robot work as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
NUM_STEPS, EXECUTION_HORIZON = 5, 2


class FakeRobot:
    """A body of the fake gateway's policy; works for a few steps and keeps what it is told to play."""

    def __init__(self) -> None:
        self.played: list[np.ndarray] = []

    def working(self) -> bool:
        return len(self.played) < NUM_STEPS

    def images(self) -> dict[str, np.ndarray]:
        return {"front": np.full((24, 32, 3), 128, np.uint8)}

    def state(self) -> np.ndarray:
        return np.array([len(self.played), 0, 0], np.float32)

    def play(self, action: np.ndarray) -> np.ndarray:
        self.played.append(action)
        return np.clip(action, -1, 1)


def test_the_example_plays_chunks_and_keeps_the_robots_history(gateway, tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg")
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert example.count('"127.0.0.1:50051"') == 1
    program = tmp_path / "example.py"
    program.write_text(example.replace("127.0.0.1:50051", gateway.address))
    robot = FakeRobot()
    runpy.run_path(str(program), init_globals={"robot": robot})
    requests = gateway.service.requests
    assert len(requests) == 3
    assert len(robot.played) == 3 * EXECUTION_HORIZON
    assert {(request.policy, request.embodiment) for request in requests} == {("tabletop", "sawyer")}
    # The fake answers with the state plus the row of the chunk; the first of a row's state is the step it was asked at.
    assert [action[0] for action in robot.played] == [0, 1, 2, 3, 4, 5]
    last = np.frombuffer(requests[-1].history.states.data, np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(last[:, 0], [2, 3])
    sent = np.frombuffer(requests[-1].history.actions.data, np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(sent[:, 0], [1, 1])
