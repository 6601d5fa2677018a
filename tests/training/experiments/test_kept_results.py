"""`python -m training experiment` over results that are there: nothing takes the place of what holds more."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_work import FakeWork
from training.__main__ import main
from training.experiments import command
from training.experiments.budget import Budget
from training.experiments.definitions.catalogue import experiment
from training.experiments.kept_results import losses
from training.experiments.plan import plan
from training.experiments.runner import carry_out
from training.experiments.store import Store
from training.experiments.work import Recordings

PARTIAL = Path("build/partial/results/decay")


def call(*arguments: str) -> int:
    return main(["experiment", *arguments])


def files(root: Path) -> dict[str, bytes]:
    """All below results/, and RESULTS.md."""
    found = [*(root / "results").rglob("*"), root / "RESULTS.md"]
    return {str(path.relative_to(root)): path.read_bytes() for path in found if path.is_file()}


def fill(store: Path, *seeds: int) -> None:
    """Everything of decay with these seeds, done by a fake."""
    filled = Store(root=store, budget=Budget.load("cpu"), data_identity=Recordings())
    with ThreadPoolExecutor(1) as executor:
        carry_out(plan([experiment("decay")], filled, seeds), filled, FakeWork(), executor, num_workers=1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the results of decay with one seed, and a store that has another one of it."""
    root = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        fill(Path("build/one"), 0)
        shutil.copytree("build/one", "build/two")
        fill(Path("build/two"), 1)
        assert call("decay", "--collect", "--store", "build/one", "--seeds", "0") == 0
    return root


@pytest.fixture
def checkout(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_recordings_nothing_is_started_and_what_was_committed_survives(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(checkout)
    assert {"results/decay/results.json", "results/decay/report.md", "RESULTS.md"} <= set(before)
    assert call("decay") == 1
    said = capsys.readouterr().err
    assert "experiment: no demonstrations of pick-place, " in said
    assert "record them with `python -m training bench-data --suite cross13`" in said
    assert files(checkout) == before
    assert not PARTIAL.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--collect",),
        ("--collect", "--store", "build/one", "--seeds", "2"),
        ("--collect", "--store", "build/two", "--seeds", "1,2"),
    ],
    ids=["no store", "no seed done", "as many seeds done, more asked"],
)
def test_a_report_of_less_goes_beside_what_was_committed(
    checkout: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(checkout)
    assert call("decay", *arguments) == 0
    out = capsys.readouterr().out
    assert f"{PARTIAL}: partial. results/decay stays until it is deleted, for it " in out
    assert files(checkout) == before
    assert "**Partial.**" in (PARTIAL / "report.md").read_text()
    assert "results/decay/report.md" in (PARTIAL.parents[1] / "RESULTS.md").read_text()


def test_an_interrupt_in_the_first_minute_leaves_what_was_committed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.experiments.work.check_recorded", lambda *_: None)
    monkeypatch.setattr(command, "_pack", lambda *_: None)
    monkeypatch.setattr(command, "_carry_out", interrupted)
    before = files(checkout)
    with pytest.raises(KeyboardInterrupt):
        call("decay")
    assert files(checkout) == before
    assert "0 of 3 priors trained" in (PARTIAL / "report.md").read_text()


def test_an_interrupt_while_packing_reports_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.experiments.work.check_recorded", lambda *_: None)
    monkeypatch.setattr(command, "_pack", interrupted)
    before = files(checkout)
    with pytest.raises(KeyboardInterrupt):
        call("decay")
    assert files(checkout) == before and not PARTIAL.exists()


def test_a_larger_result_takes_the_place_and_removes_the_partial_one(checkout: Path) -> None:
    before = files(checkout)
    assert call("decay", "--collect") == 0
    assert PARTIAL.is_dir()
    assert call("decay", "--collect", "--store", "build/two", "--seeds", "0,1") == 0
    assert not PARTIAL.parents[1].exists()
    after = files(checkout)
    assert json.loads(after["results/decay/results.json"])["seeds"] == [0, 1]
    assert after["RESULTS.md"] != before["RESULTS.md"]


def test_the_same_result_is_written_anew(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("results/decay/report.md").unlink()
    assert call("decay", "--collect", "--store", "build/one", "--seeds", "0") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "results/decay"
    assert Path("results/decay/report.md").is_file()


def test_a_partial_result_of_one_experiment_leaves_the_others_reports(checkout: Path) -> None:
    assert call("decay", "--collect") == 0
    assert call("copycat", "--collect") == 0
    assert "0 of" in Path("results/copycat/report.md").read_text()
    assert PARTIAL.is_dir() and not (PARTIAL.parent / "copycat").exists()


def result(jobs: tuple[int, int], episodes: int, *, of_video: bool = False) -> dict[str, Any]:
    tests = {"tasks": {"lift": {"episodes": episodes}}}
    arm = tests if of_video else {"checkpoints": [tests]}
    return {"jobs": {"evaluation": {"all": jobs[0], "left": jobs[1]}}, "arms": [arm]}


@pytest.mark.parametrize("of_video", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (((4, 0), 50), ((4, 0), 50), []),
        (((4, 0), 50), ((8, 4), 60), []),
        (((4, 1), 50), ((8, 5), 50), []),
        (((4, 0), 50), ((2, 0), 50), ["it has 4 finished jobs of evaluation, this 2"]),
        (
            ((4, 2), 50),
            ((4, 3), 40),
            ["it has 2 finished jobs of evaluation, this 1", "it has 50 test episodes, this 40"],
        ),
        (((4, 0), 50), ((4, 0), 10), ["it has 50 test episodes, this 10"]),
        (((4, 0), 50), ((8, 4), 50), ["it is whole, this lacks 4 jobs"]),
    ],
    ids=["equal", "more", "as much", "fewer", "fewer and partial", "fewer episodes", "more asked"],
)
def test_what_would_be_lost_is_counted(
    before: tuple[tuple[int, int], int], after: tuple[tuple[int, int], int], said: list[str], of_video: bool
) -> None:
    assert losses(result(*before, of_video=of_video), result(*after, of_video=of_video)) == said


def test_jobs_and_probes_that_only_the_earlier_result_has_would_be_lost() -> None:
    before = copy.deepcopy(result((4, 0), 50))
    before["jobs"]["probe"] = {"all": 3, "left": 1}
    before["arms"].append({"figures": {}})
    assert losses(before, result((4, 0), 50)) == ["it has 2 finished jobs of probe, this 0"]


def test_as_many_jobs_of_other_seeds_are_not_as_much() -> None:
    before, after = result((4, 0), 50), result((4, 0), 50)
    before["arms"][0]["runs"] = [{"seed": 0, "steps": 9}, {"seed": 1, "steps": 9}, {"seed": 3, "steps": 0}]
    after["arms"][0]["runs"] = [{"seed": 1, "steps": 9}, {"seed": 2, "steps": 9}]
    assert losses(before, after) == ["it has policies of seed 0, this none"]
