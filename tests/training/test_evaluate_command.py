"""What `python -m training evaluate` plays where its arguments leave it open, and where results lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from premotor.v1 import policy_pb2, policy_pb2_grpc
from training import evaluate as evaluation
from training.__main__ import main
from training.evaluate import Target
from training.recipe import Recipe
from training.rollout import Episode, summarise

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop"
REVISION = "0123456789ab"


class Asked:
    """Stands for the evaluation itself: keeps what it was asked."""

    target: Target
    tasks: Sequence[str]
    options: Mapping[str, Any]

    def __call__(self, target: Target, *, tasks: Sequence[str], **options: Any) -> list[Mapping[str, Any]]:
        self.target, self.tasks, self.options = target, tasks, options
        episode = Episode(seed=0, succeeded=True, num_steps=3, latencies_s=(0.01,))
        return [summarise("panda", task, [episode], elapsed_s=1.0) for task in tasks]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    monkeypatch.chdir(tmp_path)
    return stand_in


class Gateway(policy_pb2_grpc.PolicyServiceServicer):
    """Serves one policy that reads `history_steps` steps of history."""

    def __init__(self, history_steps: int) -> None:
        self._history_steps = history_steps

    def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: grpc.ServicerContext) -> Any:
        group = policy_pb2.Group
        form, kind = group.REPRESENTATION_ABSOLUTE, group.KIND_OTHER
        position = group(name="position", dim=2, unit="m", kind=kind, representation=form)
        policy = policy_pb2.Policy(
            name=request.policy,
            revision=REVISION,
            history_steps=self._history_steps,
            action_horizon=16,
            execution_horizon=8,
            num_inference_steps=8,
            max_inference_steps=32,
            schema_digest="digest",
            embodiments=[
                policy_pb2.Embodiment(
                    name="slider",
                    cameras=[policy_pb2.Camera(name="front", height=32, width=32)],
                    state=[position],
                    action=[position],
                    control_rate_hz=10.0,
                )
            ],
        )
        return policy_pb2.GetPolicyResponse(policy=policy)


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(Gateway(request.param), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    assert server.stop(None).wait(10.0)


def evaluate(*arguments: object) -> int:
    return main(["evaluate", "--threads", "1", *map(str, arguments)])


def test_a_checkpoint_is_asked_on_its_own_tasks_with_its_own_history(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--checkpoint", SHIPPED) == 0
    recipe = Recipe.load("cross13-continue")
    assert (tuple(asked.tasks), asked.target.history) == (recipe.data.tasks, True)
    assert (asked.options["first_seed"], asked.options["num_episodes"]) == (100_000, 50)
    said = capsys.readouterr().out.splitlines()[0]
    (directory,) = Path("build/evaluations").iterdir()
    assert said == (
        f"checkpoint {directory.name} in {SHIPPED}, with history (recipe cross13-continue); results in {directory}"
    )
    written = json.loads((directory / "results.json").read_text())
    assert [row["task"] for row in written] == list(recipe.data.tasks)
    assert all(row["history"] is True and row["revision"] == directory.name for row in written)
    assert asked.options["log_directory"] == directory / "episodes"


def test_what_is_asked_for_wins_over_the_checkpoint(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--checkpoint", SHIPPED, "--tasks", "lift", "--no-history", "--run", "own") == 0
    assert (asked.tasks, asked.target.history) == (["lift"], False)
    assert ", without history (--no-history); results in own/evaluation\n" in capsys.readouterr().out
    assert Path("own/evaluation/results.json").is_file()


def test_a_named_recipe_wins_over_the_checkpoints_own(asked: Asked) -> None:
    assert evaluate("--checkpoint", SHIPPED, "--recipe", "demo") == 0
    demo = Recipe.load("demo")
    assert (tuple(asked.tasks), asked.target.history) == (demo.data.tasks, demo.evaluation.history)


@pytest.mark.parametrize(("address", "history"), [(8, True), (0, False)], indirect=["address"])
def test_a_served_policy_that_reads_history_is_given_it(
    asked: Asked, address: str, history: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--address", address, "--policy", "tabletop", "--tasks", "drawer-open") == 0
    assert (asked.target.history, asked.target.revision, asked.tasks) == (history, REVISION, ["drawer-open"])
    assert f"revision {REVISION}, {'with' if history else 'without'} history (it reads" in capsys.readouterr().out
    assert Path(f"build/evaluations/tabletop-{REVISION}/results.json").is_file()
    assert not Path("build/runs").exists()


@pytest.mark.parametrize("address", [8], indirect=True)
def test_scenes_that_a_served_policy_may_have_been_trained_on_are_a_wrong_call(
    asked: Asked, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served = ("--address", address, "--policy", "tabletop", "--tasks", "lift", "--first-seed")
    assert evaluate(*served, 49_999) == 2
    assert "--first-seed is 49999, expected at least 50000" in capsys.readouterr().err
    assert evaluate(*served, 50_000) == 0


def test_a_served_policy_needs_tasks(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--address", "127.0.0.1:1", "--policy", "tabletop") == 2
    assert "--address needs --tasks or --suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "tabletop"], "--policy needs --address"),
        (
            ["--checkpoint", SHIPPED, "--address", "127.0.0.1:1", "--policy", "tabletop"],
            "names a policy that is served: give one",
        ),
        (["--checkpoint", SHIPPED, "--tasks", "lift", "lift"], "--tasks names one twice: lift lift"),
        (["--checkpoint", SHIPPED, "--first-seed", -60], "--first-seed is -60, expected at least 0"),
    ],
    ids=str,
)
def test_arguments_that_contradict_each_other_are_a_wrong_call(
    asked: Asked, arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not vars(asked)


def test_scenes_from_before_those_of_training_on_do_not_run_into_them(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.load("demo")
    later = replace(recipe, data=replace(recipe.data, first_seed=1000))
    (tmp_path / "later.json").write_text(json.dumps(later.to_json()))
    asks = ("--checkpoint", SHIPPED, "--recipe", tmp_path / "later.json", "--first-seed", 900, "--episodes")
    assert evaluate(*asks, 100) == 0
    assert evaluate(*asks, 101) == 2
    assert "--first-seed: evaluation.first_seed is 900, expected at least" in capsys.readouterr().err
