"""The real thing behind `Work` on toy data, and the verb: what is asked of the pipeline and what is left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from policy.checkpoint import revision_of
from training.__main__ import main
from training.experiments.experiment import Condition
from training.experiments.work import UNRECORDED, Recordings, TrainingWork, check_recorded
from training.export import git_commit
from training.recipe import Recipe, RunDirectory
from training.simulation.registry import simulator_versions
from training.suite import Suite


@pytest.fixture
def recipe(toy_recipe: Recipe, toy_run: RunDirectory) -> Recipe:
    return replace(
        toy_recipe,
        data=replace(toy_recipe.data, root=str(toy_run.root)),
        stage2=replace(toy_recipe.stage2, snapshots=(3,)),
    )


def call(*arguments: str) -> int:
    return main(["experiment", *arguments])


def test_a_run_stops_early_goes_on_and_leaves_its_checkpoints_alone(recipe: Recipe, tmp_path: Path) -> None:
    work, run = TrainingWork(device="cpu"), RunDirectory.of(recipe, tmp_path / "run")
    stage1 = work.train_stage1(recipe, tmp_path / "stage1")
    assert stage1["seconds"] > 0 and stage1["left_out_seconds"] >= 0
    early = work.train_stage2(recipe, run, tmp_path / "stage1", 2)
    assert not run.checkpoint.exists()
    assert early["seconds"] > 0 and early["left_out_seconds"] >= 0
    ended = work.train_stage2(recipe, run, tmp_path / "stage1", recipe.stage2.schedule.num_steps)
    assert run.checkpoint.is_dir() and run.snapshot(3).is_dir()
    assert not (run.stage2 / "state").exists()
    assert len((run.stage2 / "metrics.jsonl").read_text().splitlines()) == recipe.stage2.schedule.num_steps
    assert ended["revision"]
    assert not run.stage1.exists()
    # A kill before the outcome was written costs nothing.
    again = work.train_stage2(recipe, run, tmp_path / "stage1", recipe.stage2.schedule.num_steps)
    assert again["revision"] == ended["revision"]


def test_a_test_names_the_checkpoint_the_code_and_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "run" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    monkeypatch.setattr("training.evaluate.evaluate", lambda *_, **__: [{"successes": 1}])
    assert TrainingWork(device="cpu").evaluate(checkpoint, Condition(), "lift", 100_000, 1) == {
        "successes": 1,
        "revision": revision_of(checkpoint),
        "git_commit": git_commit(),
        "versions": simulator_versions("lift"),
    }


def test_weights_that_are_not_here_are_named_with_what_to_do(recipe: Recipe, tmp_path: Path) -> None:
    work, checkpoint = TrainingWork(device="cpu"), tmp_path / "run" / "checkpoint"
    with pytest.raises(FileNotFoundError, match="run/checkpoint is not here and more scenes are asked for; delete the"):
        work.evaluate(checkpoint, Condition(), "lift", 100_000, 1)
    further = replace(recipe, stage2=replace(recipe.stage2, start_from=str(checkpoint)))
    with pytest.raises(FileNotFoundError, match="is not here and a policy that starts from it is asked for; delete"):
        work.train_stage2(further, RunDirectory.of(further, tmp_path / "further"), None, 2)


def test_recordings_are_known_by_their_content(recipe: Recipe) -> None:
    (digest,) = Recordings()(recipe).values()
    assert len(digest) == 64
    moved = replace(recipe, data=replace(recipe.data, root="nowhere"))
    assert Recordings()(moved) == {"slide": UNRECORDED}


def test_motion_without_images_is_part_of_what_a_recipe_reads(recipe: Recipe) -> None:
    more = replace(recipe, stage1=replace(recipe.stage1, motion_episodes=2))
    assert set(Recordings()(more)) == {"slide", "slide without images"}


def test_the_plan_is_printed_without_any_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("decay", "--plan", "--seeds", "0,1") == 0
    out = capsys.readouterr().out
    # Four arms share a prior; five tasks each.
    assert "stage 1           2      0      2" in out
    assert "stage 2           8      0      8" in out
    assert "evaluation       40      0     40" in out
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_so_far_is_reported_without_doing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("decay", "--collect", "--json", str(tmp_path / "decay.json")) == 0
    assert "**Partial.** 0 of 3 priors trained" in (tmp_path / "results/decay/report.md").read_text()
    assert (tmp_path / "decay.json").is_file() and (tmp_path / "RESULTS.md").is_file()
    (tmp_path / "RESULTS.md").unlink()
    capsys.readouterr()
    assert call("report") == 0
    assert capsys.readouterr().out.splitlines() == ["results/decay/report.md", "RESULTS.md"]


def test_what_is_not_recorded_is_named_with_the_command_that_records_it(recipe: Recipe) -> None:
    suite = Suite.load("smoke")
    check_recorded([recipe], suite)
    root = Path(recipe.data.root)
    more = replace(recipe, stage1=replace(recipe.stage1, motion_episodes=2))
    with pytest.raises(FileNotFoundError) as refused:
        check_recorded([recipe, more], suite)
    assert str(refused.value) == (
        f"no demonstrations of slide without images in {root}; record them with "
        f"`python -m training bench-data --suite smoke --directory {root} --motion`"
    )
    elsewhere = replace(recipe, data=replace(recipe.data, root="build/bench/smoke"))
    with pytest.raises(FileNotFoundError, match=r"of slide in build/bench/smoke; .* bench-data --suite smoke`$"):
        check_recorded([elsewhere, elsewhere], suite)


def test_the_verb_says_how_to_record_what_an_experiment_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("scaling") == 1
    said = capsys.readouterr().err
    assert "experiment: no demonstrations of pick-place, " in said and "pick-place without images" in said
    assert said.endswith("record them with `python -m training bench-data --suite cross13 --motion`\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["priors"], "unknown experiment 'priors', did you mean 'prior'?"),
        (["prior", "--budget", "tpu"], "unknown budget 'tpu', did you mean"),
        (["report", "--from-results"], "--from-results is for an experiment, all or video, not 'report'"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["0,a", "0,0", "-1", ""])
def test_wrong_seeds_exit_with_2(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        call("prior", f"--seeds={seeds}")
    assert exit_.value.code == 2
    assert "argument --seeds" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "-1", "two", ""])
def test_a_wrong_number_of_workers_exits_with_2(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        call("prior", "--plan", f"--workers={workers}")
    assert exit_.value.code == 2
    assert "argument --workers" in capsys.readouterr().err
