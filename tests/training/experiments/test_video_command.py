"""The verb over the experiments on video: recordings are asked for before hours of filming, and more is kept.

What another machine did is taken up under the lock, and said.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.training.experiments.fake_video_work import FakeVideoWork
from training.__main__ import main
from training.experiments.video.budget import VideoBudget
from training.experiments.video.definitions.catalogue import PILOT, VIDEO_EXPERIMENTS
from training.experiments.video.plan import plan
from training.experiments.video.runner import carry_out
from training.experiments.video.store import VideoStore
from training.experiments.work import Recordings

JOBS = "jobs.json"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the results of latent-quality of one seed."""
    monkeypatch.chdir(tmp_path)
    store = VideoStore(root=Path("build/one"), budget=VideoBudget.load("cpu"), data_identity=Recordings())
    with ThreadPoolExecutor(1) as executor:
        planned = plan([VIDEO_EXPERIMENTS["latent-quality"]], store, (0,))
        carry_out(planned, store, FakeVideoWork(), executor, num_workers=1)
    assert main(["experiment", "latent-quality", "--collect", "--store", "build/one", "--seeds", "0"]) == 0
    return tmp_path


def committed(root: Path) -> dict[str, bytes]:
    found = [*(root / "results").rglob("*"), root / "RESULTS.md"]
    return {str(path): path.read_bytes() for path in found if path.is_file()}


def test_policies_without_recordings_are_refused_before_any_clip_is_filmed(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = committed(checkout)
    assert main(["experiment", "adaptation"]) == 1
    said = capsys.readouterr().err
    assert "experiment: no demonstrations of " in said
    assert "record them with `python -m training bench-data --suite cross13`" in said
    assert not Path("build/experiments").exists()
    assert committed(checkout) == before


def test_the_plan_of_video_begins_with_a_pilot_of_its_controls_and_all_seeds(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "video", "--plan"]) == 0
    assert "of these 56 first, about " in capsys.readouterr().out
    assert main(["experiment", "video-pilot", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "seeds 0, 1, 2: video-pilot" in said and "56 jobs left" in said


def test_the_pilot_says_what_the_controls_solve_by_seed_and_leaves_no_results(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = VideoStore(root=Path("build/two"), budget=VideoBudget.load("cpu"), data_identity=Recordings())
    before = committed(checkout)
    with ThreadPoolExecutor(1) as executor:
        for seeds in ((0, 1), (0, 1, 2)):
            carry_out(plan([PILOT], store, seeds), store, FakeVideoWork(), executor, num_workers=1)
            capsys.readouterr()
            assert main(["experiment", "video-pilot", "--collect", "--store", "build/two"]) == 0
            said = capsys.readouterr().out
            assert ("Not every task was tested: " in said) == (len(seeds) == 2)
            assert ("Over all seeds the controls leave room on every task." in said) == (len(seeds) == 3)
    (header,) = [line for line in said.splitlines() if "assembly, seed 0, %" in line]
    assert header.count(", seed ") == 6
    rows = [line for line in said.splitlines() if line.startswith("| paper A's policy, 50 demonstrations |")]
    run = store.policy_run(PILOT.arms[-1].training, 2)
    solved = store.evaluation(run, "lift").solved
    assert rows[-1].endswith(f" {2 * sum(solved)} |")
    assert committed(checkout) == before


def test_results_on_video_are_not_replaced_by_less(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = committed(checkout)
    capsys.readouterr()
    assert main(["experiment", "latent-quality", "--collect"]) == 0
    out = capsys.readouterr().out
    assert "build/partial/results/latent-quality: partial. results/latent-quality stays until it is deleted, for" in out
    assert committed(checkout) == before
    assert "**Partial.**" in Path("build/partial/results/latent-quality/report.md").read_text()


def test_the_verb_says_how_many_jobs_on_video_are_done_elsewhere(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = VideoStore(root=Path("build/one"), budget=VideoBudget.load("cpu"), data_identity=Recordings())
    num_jobs = len(plan([VIDEO_EXPERIMENTS["latent-quality"]], store, (0,)).jobs)
    arguments = ["experiment", "latent-quality", "--seeds", "0", "--plan"]
    capsys.readouterr()
    assert main(arguments) == 0
    before = capsys.readouterr().out
    assert f"{num_jobs} jobs left" in before and "jobs.json" not in before
    assert main([*arguments, "--from-results"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{num_jobs} jobs are done by results/*/jobs.json\n") and "\n0 jobs left" in said
    assert main(["experiment", "video", "--seeds", "0", "--plan", "--from-results", "--store", "build/all"]) == 0
    assert " jobs are done by results/*/jobs.json\n" in capsys.readouterr().out


def test_what_was_taken_up_is_reported_with_nothing_carried_out(checkout: Path) -> None:
    whole = {name: json.loads(Path(f"results/latent-quality/{name}").read_text()) for name in ("results.json", JOBS)}
    assert main(["experiment", "latent-quality", "--collect", "--seeds", "0", "--from-results"]) == 0
    again = {name: json.loads(Path(f"results/latent-quality/{name}").read_text()) for name in whole}
    assert again[JOBS] == whole[JOBS]
    for name in ("claims", "seconds", "jobs", "git_commits"):
        assert again["results.json"][name] == whole["results.json"][name]
    assert "probes were not made here" in Path("results/latent-quality/report.md").read_text()


def test_nothing_on_video_is_taken_up_while_another_process_carries_out(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = VideoStore(root=Path("build/two"), budget=VideoBudget.load("cpu"), data_identity=Recordings())
    arguments = ["experiment", "latent-quality", "--seeds", "0", "--plan", "--from-results", "--store", "build/two"]
    with store.locked():
        assert main(arguments) == 1
    assert "another process carries out experiments in" in capsys.readouterr().err
    assert not (store.root / "outcomes").exists()
