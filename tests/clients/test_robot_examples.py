"""The examples drive robots as they stand, are as short as they say, and the README quotes them as they are."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import Any

import pytest

from premotor.client import Recording
from premotor.v1 import policy_pb2

ROOT = Path(__file__).resolve().parents[2]
NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of_code(path: Path) -> int:
    """Lines with a token on them, docstrings and comments left out."""
    lines: set[int] = set()
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))
    for before, token in zip([None, *tokens], tokens, strict=False):
        is_docstring = token.type == tokenize.STRING and (before is None or before.type in NOT_CODE)
        if token.type not in NOT_CODE and not is_docstring:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )


def _group(name: str, dim: int, kind: Any, unit: str) -> policy_pb2.Group:
    return policy_pb2.Group(name=name, dim=dim, unit=unit, kind=kind, representation="REPRESENTATION_ABSOLUTE")


# As two of the shipped policy's bodies: one measures all that is commanded, one neither its gripper nor its mode.
ARMS = _group("arms", 3, "KIND_JOINT_POSITION", "rad")
BODIES = {
    "aloha": ([ARMS], [ARMS]),
    "pandaomron": (
        [ARMS],
        [
            _group("base", 1, "KIND_BASE", "m/s"),
            _group("gripper", 1, "KIND_GRIPPER", "effort"),
            _group("mode", 1, "KIND_OTHER", "1"),
        ],
    ),
}


@pytest.fixture(params=["sawyer", *BODIES])
def body(request: pytest.FixtureRequest, gateway) -> str:
    (sawyer,) = gateway.service.policy.embodiments
    for name, (state, action) in BODIES.items():
        gateway.service.policy.embodiments.add(
            name=name, cameras=sawyer.cameras, state=state, action=action, control_rate_hz=sawyer.control_rate_hz
        )
    return request.param


def test_the_short_example_plays_a_robot(gateway, body: str) -> None:
    result = run("examples/control_loop.py", gateway.address, "tabletop", body)
    played = re.match(r"(\d+) actions of (\d+) chunks, \d+ underruns", result.stdout)
    assert played is not None and int(played[1]) > 0 and int(played[2]) > 0
    assert "step 0: Held" in result.stderr
    assert {request.robot_id for request in gateway.service.requests} == {"arm-1"}


def test_the_longer_example_records_several_robots(gateway, tmp_path: Path, body: str) -> None:
    result = run(
        "examples/recorded_robots.py", "--address", gateway.address, "--policy", "tabletop", "--embodiment", body,
        "--robots", "2", "--steps", "40", "--out", str(tmp_path),
    )  # fmt: skip
    assert len(re.findall(r"^robot-\d: \d+ played at an age of \d+ ms", result.stdout, re.MULTILINE)) == 2
    for name in ("robot-0", "robot-1"):
        (episode,) = Recording(tmp_path / name).episodes()
        assert episode.summary["robot_id"] == name
        assert 0 < episode.summary["num_steps"] <= 40
    assert {request.robot_id for request in gateway.service.requests} == {"robot-0", "robot-1"}


@pytest.mark.parametrize(("name", "most"), [("control_loop", 25), ("recorded_robots", 60)])
def test_an_example_is_as_short_as_it_says(name: str, most: int) -> None:
    assert 10 < lines_of_code(ROOT / f"examples/{name}.py") <= most


def test_the_readme_quotes_the_core_of_both_examples() -> None:
    quoted = re.findall(r"^```py\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    for quote, name in zip(quoted, ("control_loop", "recorded_robots"), strict=True):
        example = (ROOT / f"examples/{name}.py").read_text()
        # What stands inside a function there stands by itself here.
        assert any(textwrap.indent(quote, " " * depth) in example for depth in range(0, 20, 4)), name
        assert "ChunkPlayer(" in quote and "unmeasured_at_zero(embodiment)" in quote
