"""`python -m training inspect` and `export`: of a trained run or a checkpoint; nothing is trained for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training import inspection
from training.__main__ import main
from training.corpus import Corpus, open_corpus
from training.export import export_checkpoint
from training.loop import Schedule
from training.pipeline import train_stages
from training.recipe import Recipe, RunDirectory

NUM_STEPS = 2
TUNING_SEEDS = (50_000, 50_001)


@pytest.fixture(scope="module")
def recipe(toy_recipe: Recipe, toy_run: RunDirectory) -> Recipe:
    """The toy recipe, two steps a stage, on the shared recordings."""
    schedule = Schedule(num_steps=NUM_STEPS, warmup_steps=1)
    return replace(
        toy_recipe,
        data=replace(toy_recipe.data, root=str(toy_run.root)),
        stage1=replace(toy_recipe.stage1, schedule=schedule),
        stage2=replace(toy_recipe.stage2, schedule=schedule),
    )


@pytest.fixture(scope="module")
def recipe_file(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "toy.json"
    path.write_text(json.dumps(recipe.to_json()))
    return str(path)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that is trained and exported."""
    run = RunDirectory.of(recipe, tmp_path_factory.mktemp("trained"))
    corpus = open_corpus(recipe, run)
    export_checkpoint(corpus, train_stages(corpus, run), run.checkpoint, training={}, metrics={})
    return run


def call(verb: str, *arguments: object) -> int:
    return main([verb, "--threads", "1", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["tasks"]


@pytest.mark.parametrize("verb", ["inspect", "export"])
def test_a_run_that_is_not_trained_is_refused_before_its_recordings_are_packed(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert call(verb, "--recipe", recipe_file, "--run", tmp_path) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        f"{verb}: stage 2 in {tmp_path / 'stage2'} is at step 0 of 2; run the verb 'stage2' first, which resumes\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_half_trained_is_refused_and_not_trained_on(
    recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("stage2", "--recipe", recipe_file, "--run", tmp_path, "--until", 1) == 0
    assert call("inspect", "--recipe", recipe_file, "--run", tmp_path) == 1
    assert "is at step 1 of 2; run the verb 'stage2' first" in capsys.readouterr().err


def test_a_checkpoint_is_looked_at_as_the_run_that_it_came_from(
    trained: RunDirectory, recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("inspect", "--recipe", recipe_file, "--run", trained.root, "--json", tmp_path / "run.json") == 0
    said = capsys.readouterr().out
    assert "slide" in said
    assert said.endswith(
        "frames of all tasks: of demonstrations that it was trained on; --held-out has others\n",
    )
    # Neither the run's statistics nor its training state are there: the checkpoint has what it takes.
    elsewhere = tmp_path / "elsewhere"
    assert (
        call("inspect", "--checkpoint", trained.checkpoint, "--run", elsewhere, "--json", tmp_path / "checkpoint.json")
        == 0
    )
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "checkpoint.json").read_text())
    assert f"checkpoint {written['checkpoint']} in {trained.checkpoint}\n" in said
    assert "of demonstrations that it was trained on" in said
    assert not elsewhere.exists()
    (of_run,), (of_checkpoint,) = rows_of(tmp_path / "run.json"), written["tasks"]
    assert of_checkpoint["frames"] == of_run["frames"] == "training"
    for name, value in of_run.items():
        assert of_checkpoint[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
    assert rows_of(trained.root / "inspection.json") == [of_run]


def test_recordings_that_a_checkpoint_does_not_name_are_not_called_its_training(
    trained: RunDirectory,
    recipe: Recipe,
    demonstrate: Callable[[Path, Sequence[int]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = RunDirectory(root=tmp_path)
    demonstrate(other.dataset("slide"), range(7, 11))
    own_data = replace(recipe, data=replace(recipe.data, root=""))
    other.recipe.write_text(json.dumps(own_data.to_json()))
    asked = ("--checkpoint", trained.checkpoint, "--run", tmp_path, "--frames", 9, "--json", tmp_path / "found.json")
    assert call("inspect", *asked) == 0
    assert "frames of all tasks: of demonstrations that its training does not name" in capsys.readouterr().out
    (row,) = rows_of(tmp_path / "found.json")
    assert (row["frames"], row["num_frames"]) == ("other", 9)


def test_a_task_that_stage_2_leaves_out_is_not_called_training(recipe: Recipe, trained: RunDirectory) -> None:
    corpus = open_corpus(recipe, trained)
    without = replace(recipe, stage2=replace(recipe.stage2, tasks=("another",)), data=_with_task(recipe))
    assert inspection.frames_of_run(replace(corpus, recipe=without)) == {"slide": "other"}
    assert inspection.frames_of_run(corpus) == {"slide": "training"}


def _with_task(recipe: Recipe) -> Any:
    return replace(recipe.data, tasks=(*recipe.data.tasks, "another"))


def test_a_body_that_the_checkpoint_does_not_know_is_refused(
    trained: RunDirectory, toy_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe
) -> None:
    other = RunDirectory(root=tmp_path)
    shutil.copytree(toy_run.dataset("slide"), other.dataset("slide"))
    annotations = other.dataset("slide") / "meta" / "premotor.json"
    changed = json.loads(annotations.read_text())
    changed["embodiment"]["control_rate_hz"] = 11.0
    annotations.write_text(json.dumps(changed))
    other.recipe.write_text(json.dumps(replace(recipe, data=replace(recipe.data, root="")).to_json()))
    assert call("inspect", "--checkpoint", trained.checkpoint, "--run", tmp_path) == 1
    assert "embodiment 'slider' of task 'slide' is not the one it was trained on" in capsys.readouterr().err


def test_a_checkpoint_that_names_no_recipe_needs_one(
    trained: RunDirectory, recipe: Recipe, recipe_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = open_corpus(recipe, trained)
    made_by = {"recipe": {"name": "another kind"}}
    export_checkpoint(corpus, corpus.build_model(), tmp_path / "own", training={}, metrics={}, made_by=made_by)
    assert call("inspect", "--checkpoint", tmp_path / "own") == 1
    assert "name one with --recipe" in capsys.readouterr().err
    assert call("inspect", "--checkpoint", tmp_path / "own", "--recipe", recipe_file, "--frames", 4) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--frames", "1"), "--frames is 1, expected at least 2"),
        (("--checkpoint", "somewhere", "--backbone", "model"), "a checkpoint has its own backbone"),
        (("--checkpoint", "somewhere", "--lora-rank", "0"), "a checkpoint has its own backbone"),
        (("--checkpoint", "somewhere", "--layers-from", "model"), "a checkpoint has its own backbone and layers"),
    ],
)
def test_a_wrong_inspection_exits_with_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = () if "--checkpoint" in arguments else ("--run", tmp_path)
    assert call("inspect", *wrong, *arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("unusual", "said"),
    [
        (("--noise-scale", "2"), "noise_scale is 2.0, expected a number from 0 to 1"),
        (("--inference-steps", "99"), "num_inference_steps is 99, expected 1 to max_inference_steps 32"),
    ],
)
@pytest.mark.parametrize("of", ["run", "checkpoint"])
def test_what_a_model_cannot_be_asked_is_refused_before_anything_is_recorded(
    of: str,
    unusual: tuple[str, str],
    said: str,
    trained: RunDirectory,
    recipe_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[object] = []
    monkeypatch.setattr(inspection, "TASK_NAMES", ("slide",))
    monkeypatch.setattr(inspection, "record", lambda **asked: recorded.append(asked))
    whose = ("--recipe", recipe_file, "--run", trained.root)
    if of == "checkpoint":
        whose = ("--checkpoint", trained.checkpoint, "--run", tmp_path / "run")
    assert call("inspect", *whose, "--held-out", *unusual) == 2
    assert said in capsys.readouterr().err
    assert not recorded


class Expert:
    """In the place of `record`: writes the toy task's demonstrations and remembers what was asked."""

    def __init__(self, demonstrate: Callable[[Path, Sequence[int]], None], seeds: Sequence[int]) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self._demonstrate, self._seeds = demonstrate, seeds

    def record(self, *, directory: Path, **asked: Any) -> Path:
        self.asked.append(asked)
        if not directory.exists():
            self._demonstrate(directory, self._seeds)
        return directory


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "TASK_NAMES", ("slide",))


def test_held_out_scenes_are_recorded_once_and_looked_at(
    trained: RunDirectory,
    simulated: None,
    demonstrate: Callable[[Path, Sequence[int]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert = Expert(demonstrate, TUNING_SEEDS)
    monkeypatch.setattr(inspection, "record", expert.record)
    asked = ("--checkpoint", trained.checkpoint, "--run", tmp_path, "--json", tmp_path / "found.json")
    assert call("inspect", *asked) == 0
    (seen,) = rows_of(tmp_path / "found.json")
    for _ in range(2):
        assert call("inspect", *asked, "--held-out", "--workers", "1") == 0
    assert "frames of all tasks: of 2 demonstrations a task on tuning scenes, which no training sees" in (
        capsys.readouterr().out
    )
    (held_out,) = rows_of(tmp_path / "found.json")
    assert (held_out["frames"], held_out["num_frames"]) == ("held-out", 20 + 21)
    assert held_out["error"] != seen["error"]
    expected = {"task": "slide", "num_episodes": 2, "first_seed": 50_000, "disturbed_fraction": 0.5, "num_workers": 1}
    assert expert.asked == [expected, expected]
    assert (tmp_path / "held-out" / "data" / "slide").is_dir()


def test_scenes_that_were_trained_on_are_not_held_out(
    trained: RunDirectory,
    recipe: Recipe,
    simulated: None,
    demonstrate: Callable[[Path, Sequence[int]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspection, "record", Expert(demonstrate, (3, 50_000)).record)
    corpus: Corpus = open_corpus(recipe, trained)
    with pytest.raises(ValueError, match=r"scenes \[3\] of 'slide' are among its demonstrations"):
        inspection.held_out_packs(corpus, inspection.scenes_of_run(corpus), tmp_path, num_workers=1)
    manifest = {"data": {"slide": {"first_seed": 0, "last_seed": 3}}}
    with pytest.raises(ValueError, match=r"scenes \[3\] of 'slide' are among its demonstrations"):
        inspection.held_out_packs(corpus, inspection.scenes_of_checkpoint(manifest), tmp_path, num_workers=1)


@pytest.fixture
def alone(trained: RunDirectory, recipe: Recipe, tmp_path: Path) -> Path:
    """A checkpoint whose recordings are nowhere, as in a fresh clone."""
    corpus = open_corpus(recipe, trained)
    elsewhere = replace(recipe, data=replace(recipe.data, root=str(tmp_path / "nowhere")))
    export_checkpoint(
        replace(corpus, recipe=elsewhere), corpus.build_model(), tmp_path / "alone", training={}, metrics={}
    )
    return tmp_path / "alone"


def test_held_out_scenes_need_the_checkpoint_alone(
    alone: Path,
    simulated: None,
    demonstrate: Callable[[Path, Sequence[int]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspection, "record", Expert(demonstrate, TUNING_SEEDS).record)
    asked = ("--checkpoint", alone, "--run", tmp_path / "run", "--held-out", "--json", tmp_path / "found.json")
    assert call("inspect", *asked) == 0
    (row,) = rows_of(tmp_path / "found.json")
    assert (row["frames"], row["num_frames"], row["trained_with_history"]) == ("held-out", 20 + 21, True)


def test_a_checkpoint_without_its_recordings_names_the_call_that_records_them(
    alone: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("inspect", "--checkpoint", alone) == 1
    assert capsys.readouterr().err == (
        f"inspect: no demonstrations of slide in {tmp_path / 'nowhere' / 'data'}; "
        "run the verb 'record' with --recipe, a file of recipe 'toy', first\n"
    )
    shipped = Recipe.load("cross13-continue")
    shipped = replace(shipped, data=replace(shipped.data, root=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError) as raised:
        open_corpus(shipped, RunDirectory.of(shipped, tmp_path))
    assert str(raised.value).endswith(
        "; run 'python -m training record --recipe cross13-continue' (about 32 minutes of one core) first"
    )


def test_what_no_simulator_plays_has_no_scene_to_hold_out(
    trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("inspect", "--checkpoint", trained.checkpoint, "--run", tmp_path, "--held-out") == 1
    assert "no simulator here plays slide" in capsys.readouterr().err


def test_what_is_not_asked_as_usual_is_not_the_runs_inspection(
    trained: RunDirectory, recipe_file: str, tmp_path: Path
) -> None:
    whole = RunDirectory(root=tmp_path / "run")
    shutil.copytree(trained.root, whole.root)
    (whole.root / "inspection.json").unlink(missing_ok=True)
    for unusual in (("--frames", 5), ("--noise-scale", 0.5), ("--inference-steps", 1)):
        assert call("inspect", "--recipe", recipe_file, "--run", whole.root, *unusual) == 0
    assert not (whole.root / "inspection.json").exists()
