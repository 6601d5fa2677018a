"""Tasks and bodies are found as files and described without a simulator."""

from __future__ import annotations

import subprocess
import sys

import pytest

from policy.embodiment import EmbodimentSpec, Group, GroupKind
from training.names import UnknownNameError
from training.simulation import registry
from training.simulation.bodies import load_body
from training.simulation.registry import TASK_NAMES, body_of, check_task, embodiment

BODIES = {
    "sawyer": {"pick-place", "drawer-open", "button-press", "assembly"},
    "panda": {"lift", "pick-can", "nut-assembly"},
    "ur5e": {"stack-ur5e"},
    "iiwa": {"pick-can-iiwa"},
    "kinova3": {"stack-kinova3"},
    "xarm7": {"open-door"},
    "pandaomron": {"stack-omron"},
    "aloha": {"transfer-cube", "insertion"},
}
# Checkpoints and statistics are of one digest: another one is another body.
SHIPPED_DIGESTS = {
    "sawyer": "957d39d8d4ad06a3a271552ca3ff2ab87f8f7127590e799d24a950ee679e0dfa",
    "panda": "0e64d8a42d351c1dcbc0051bd9fe2d2d16ed9152c73ac362dcdb165dc2258c85",
    "aloha": "a8fdc68c8fab06b99398d39b2db6853bb117cdf7583953952c5bcd685e50ac6a",
}
SIMULATORS = ("mujoco", "metaworld", "robosuite", "gym_aloha")


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_has_a_body_with_a_spec_of_its_name_and_a_disturbance(task: str) -> None:
    assert embodiment(task).name == body_of(task)
    assert embodiment(task).camera_names
    assert load_body(body_of(task)).DISTURBANCE_SCALE > 0


def test_the_tasks_are_spread_over_eight_bodies() -> None:
    assert {body: {task for task in TASK_NAMES if body_of(task) == body} for body in BODIES} == BODIES
    assert set(TASK_NAMES) == set().union(*BODIES.values())


@pytest.mark.parametrize("body", SHIPPED_DIGESTS)
def test_a_body_of_the_shipped_checkpoint_keeps_its_digest(body: str) -> None:
    assert load_body(body).SPEC.digest == SHIPPED_DIGESTS[body]


@pytest.mark.parametrize(
    ("body", "action_dim", "state_dim"),
    [("ur5e", 7, 12), ("iiwa", 8, 13), ("kinova3", 8, 13), ("xarm7", 7, 13), ("pandaomron", 12, 9)],
)
def test_an_arm_of_robosuite_has_the_dimensions_of_its_controller(body: str, action_dim: int, state_dim: int) -> None:
    spec = load_body(body).SPEC
    assert (spec.action_dim, spec.state_dim) == (action_dim, state_dim)


def test_registry_and_bodies_import_no_simulator() -> None:
    script = (
        "import sys; from training.simulation.registry import TASK_NAMES, embodiment; "
        f"[embodiment(task) for task in TASK_NAMES]; print([n for n in {SIMULATORS} if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_name_without_a_file_is_unknown_and_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'stack-ur5', did you mean 'stack-ur5e'"):
        check_task("stack-ur5")


def test_a_task_whose_body_has_no_file_does_not_ask_for_a_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        PACKAGE = "robosuite"

        def make(self) -> None:
            load_body("nobody")

    monkeypatch.setattr(registry, "_load", lambda task: Task())
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'training\.simulation\.bodies\.nobody'$"):
        registry.make_simulation("lift")


def test_a_disturbance_leaves_a_mobile_base_alone() -> None:
    import numpy as np

    from policy.embodiment import group_slices
    from training.simulation.disturbance import Disturbance

    spec: EmbodimentSpec = load_body("pandaomron").SPEC
    disturbance = Disturbance(np.random.default_rng(0), spec)
    still = np.zeros(spec.action_dim, np.float32)
    offsets = np.stack([disturbance.apply(still) for _ in range(200)])

    def is_pushed(group: Group) -> bool:
        return group.kind in (GroupKind.END_EFFECTOR_POSITION, GroupKind.END_EFFECTOR_ROTATION)

    assert {g.name: bool(offsets[:, columns].any()) for g, columns in group_slices(spec.action)} == {
        group.name: is_pushed(group) for group in spec.action
    }
