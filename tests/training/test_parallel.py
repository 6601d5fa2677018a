"""One process or two, copies or shards: the same losses, and any of them goes on where another stopped.

torchrun starts the two processes once for all tests that compare.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.corpus import open_corpus
from training.data.sampler import TaskBalancedSampler
from training.parallel import ALONE, Processes, processes
from training.pipeline import train_stages
from training.recipe import Recipe, RunDirectory
from training.stage1 import train_stage1

PROGRAM = Path(__file__).parent / "shared_training.py"
NUM_STEPS = 4
LOSSES = ("loss", "prediction", "alignment", "reconstruction", "landmarks")


def load(program: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchrun(*arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Two processes on few cores: threads that spin for one another would take minutes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*launch, *arguments], env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


# Who trains until which step, for each directory; one process begins "resumed" and ends "passed-on".
SHARED = {
    "ddp": [("ddp", NUM_STEPS)],
    "resumed": [("fsdp", NUM_STEPS)],
    "passed-on": [("fsdp", 2), ("ddp", 3)],
    "in-turns": [("ddp", 3), ("fsdp", NUM_STEPS)],
}
# stage2alone runs without history, so that a step after the distillation leaves the encoder without a gradient.
RUNS = [
    *(("stage1", name) for name in ("ddp", "resumed")),
    *(("stage2", name) for name in ("ddp", "resumed", "passed-on")),
    ("stage2alone", "in-turns"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory per stage, with one in it for each who trained it."""
    root = tmp_path_factory.mktemp("shared")
    train = load(PROGRAM).train
    for stage in {stage for stage, _ in RUNS}:
        weights = train(stage, root / stage / "alone").state_dict()
        save_file(weights, root / stage / "alone" / "trained.safetensors")
    for stage, name in RUNS:
        if name == "resumed":
            train(stage, root / stage / name, until=1)
    jobs = [
        f"{stage}:{sharing}:{until}:{root / stage / name}" for stage, name in RUNS for sharing, until in SHARED[name]
    ]
    last_weights = root / RUNS[-1][0] / RUNS[-1][1] / "trained.safetensors"
    done = torchrun(str(PROGRAM), *jobs)
    # A process of FSDP2 on gloo may abort when it exits: what is there decides, and what is not there is resumed once.
    if done.returncode and not last_weights.exists():
        done = torchrun(str(PROGRAM), *jobs)
    assert last_weights.exists(), done.stderr[-4000:]
    for stage, name in RUNS:
        if name == "passed-on":
            train(stage, root / stage / name)
    return root


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "name"), RUNS, ids=str)
def test_however_many_processes_train_they_log_the_losses_of_one(root: Path, stage: str, name: str) -> None:
    alone, shared = metrics(root / stage / "alone"), metrics(root / stage / name)
    assert [values["step"] for values in shared] == list(range(NUM_STEPS))
    assert len({values["loss"] for values in alone}) == NUM_STEPS, "a loss that never moves shows nothing"
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() & set(LOSSES):
            assert two[key] == pytest.approx(one[key], abs=1e-5), (one["step"], key)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)


def test_a_stage_returns_whole_weights_whoever_trained_them(root: Path) -> None:
    alone = load_file(root / "stage1" / "alone" / "trained.safetensors")
    for name in ("ddp", "resumed"):
        shared = load_file(root / "stage1" / name / "trained.safetensors")
        assert shared.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(shared[key], value, atol=1e-5, rtol=0, msg=f"{name} {key}")


def test_a_training_state_does_not_say_who_wrote_it(root: Path) -> None:
    shapes = []
    for name in ("alone", "ddp", "resumed"):
        (state,) = (root / "stage2" / name / "state").glob("*.safetensors")
        shapes.append({key: value.shape for key, value in load_file(state).items()})
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_are_those_of_the_samples_that_a_process_draws(world_size: int) -> None:
    alone = TaskBalancedSampler((50, 7), (1.0, 2.0), 6, 3)
    whole = torch.tensor([frame for _, frames in alone.batch(5) for frame in frames])
    for rank in range(world_size):
        members = Processes(rank=rank, world_size=world_size, sharing="ddp")
        mine = TaskBalancedSampler((50, 7), (1.0, 2.0), 6, 3, rank=rank, world_size=world_size)
        assert members.rows(whole).tolist() == [frame for _, frames in mine.batch(5) for frame in frames]


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with processes("fsdp", "cpu") as (members, device):
        assert members == ALONE and members.writes and device == "cpu"


def test_torchrun_trains_a_stage_from_the_command_line(
    toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path
) -> None:
    recipe = replace(toy_recipe, size="tiny")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    run = RunDirectory(root=tmp_path)
    run.datasets.symlink_to(toy_run.datasets)
    train_stage1(open_corpus(recipe, run), tmp_path / "alone", until=2)
    options = ["--recipe", str(tmp_path / "recipe.json"), "--run", str(tmp_path), "--threads", "1", "--until", "2"]
    # After "--", for torchrun would take --run for an abbreviation of its own.
    done = torchrun("-m", "--", "training", "stage1", *options)
    assert done.stdout == f"stage 1 in {run.stage1}\n", done.stderr[-4000:]
    assert [two["loss"] for two in metrics(run.stage1)] == pytest.approx(
        [one["loss"] for one in metrics(tmp_path / "alone")], abs=1e-5
    )


def test_processes_that_train_together_write_the_snapshots_of_one(
    toy_recipe: Recipe, toy_run: RunDirectory, tmp_path: Path
) -> None:
    stage1 = replace(toy_recipe.stage1, schedule=replace(toy_recipe.stage1.schedule, num_steps=0))
    recipe = replace(toy_recipe, stage1=stage1, stage2=replace(toy_recipe.stage2, snapshots=(1, 2)))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    alone, together = RunDirectory(root=tmp_path / "alone"), RunDirectory(root=tmp_path / "together")
    for run in (alone, together):
        run.root.mkdir()
        run.datasets.symlink_to(toy_run.datasets)
    train_stages(open_corpus(recipe, alone), alone, until=3)
    options = ["--recipe", str(tmp_path / "recipe.json"), "--run", str(together.root), "--threads", "1", "--until", "3"]
    done = torchrun("-m", "--", "training", "stage2", *options)
    assert done.stdout == f"stage 2 in {together.stage2}\n", done.stderr[-4000:]
    for step in (1, 2):
        one, two = (load_file(run.snapshot(step) / "model.safetensors") for run in (alone, together))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0, msg=f"{step} {name}")
