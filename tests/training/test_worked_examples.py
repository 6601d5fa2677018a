"""The worked examples of CONTRIBUTING.md are whole files: put in place as they stand, they are found and solved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = dict(
    re.findall(r"^```python (\S+)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
)
# Another process, for what a package finds is for good. Beside the shipped files, as if they lay there.
SOLVE = """
import json, sys
from training.simulation import bodies, tasks
tasks.__path__.append(sys.argv[1] + "/tasks")
bodies.__path__.append(sys.argv[1] + "/bodies")
from training.record import record_episode
from training.simulation.registry import embodiment, make_simulation
spec, simulators = embodiment(sys.argv[2]), {"mujoco", "metaworld", "robosuite"} & set(sys.modules)
simulation = make_simulation(sys.argv[2])
episode = record_episode(simulation, 0, disturbance=None)
simulation.close()
print(json.dumps({
    "task": simulation.task,
    "body": [spec.name, simulation.spec.name],
    "simulators_to_list_it": sorted(simulators),
    "solved": episode is not None,
    "shapes": {} if episode is None else {name: list(rows.shape) for name, rows in episode.items()},
    "state_dim": spec.state_dim,
    "action_dim": spec.action_dim,
}))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
    for name, text in EXAMPLES.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


def test_the_page_has_a_task_a_body_and_a_task_for_it() -> None:
    assert sorted(EXAMPLES) == ["bodies/xarm7_joints.py", "tasks/drawer_close.py", "tasks/lift_xarm7_joints.py"]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_is_not_there_already_and_keeps_the_style(name: str, packages: Path) -> None:
    assert not (ROOT / "training/simulation" / name).exists()
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check"], ["format", "--check"]):
        command = [*ruff, *check, "--config", str(ROOT / "pyproject.toml"), str(packages / name)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("task", "body"), [("drawer-close", "sawyer"), ("lift-xarm7-joints", "xarm7_joints")], ids=["task", "body"]
)
def test_an_example_is_found_by_its_name_and_its_expert_solves_an_episode(task: str, body: str, packages: Path) -> None:
    command = [sys.executable, "-c", SOLVE, str(packages), task]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["task"], found["body"]) == (task, [body, body])
    assert found["simulators_to_list_it"] == []
    assert found["solved"]
    num_steps = found["shapes"]["action"][0]
    assert found["shapes"]["action"] == [num_steps, found["action_dim"]]
    assert found["shapes"]["observation.state"] == [num_steps, found["state_dim"]]
    assert sum(name.startswith("observation.images.") for name in found["shapes"]) == 2
