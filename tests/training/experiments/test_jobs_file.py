"""results/*/jobs.json of both papers' experiments: each reader takes its own, and says what in it is wrong."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_video_work import FakeVideoWork, video_store_of
from tests.training.experiments.fake_work import FakeWork, store_of
from training.experiments.budget import Budget
from training.experiments.definitions.catalogue import experiment
from training.experiments.finished_jobs import take_up_finished_jobs as take_up_paper_a
from training.experiments.plan import plan
from training.experiments.results import collect, write_results
from training.experiments.runner import carry_out
from training.experiments.store import Store
from training.experiments.video.budget import VideoBudget
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.finished_jobs import take_up_finished_jobs as take_up_video
from training.experiments.video.finished_jobs import write_finished_jobs
from training.experiments.video.plan import plan as plan_of_video
from training.experiments.video.runner import carry_out as carry_out_video
from training.experiments.video.store import VideoStore

DECAY, ALIGNMENT = experiment("decay"), VIDEO_EXPERIMENTS["alignment"]


@pytest.fixture
def paper_a(tmp_path: Path) -> Store:
    budget = replace(Budget.load("cpu"), episodes=2, curve_episodes=1, fewer_episodes={})
    return store_of(budget, tmp_path / "paper_a")


@pytest.fixture
def video(tmp_path: Path) -> VideoStore:
    return video_store_of(VideoBudget.load("cpu"), tmp_path / "video")


def test_each_reader_takes_its_own_files_and_ignores_the_others(
    paper_a: Store, video: VideoStore, tmp_path: Path
) -> None:
    done, filmed = replace(paper_a, root=tmp_path / "done"), replace(video, root=tmp_path / "filmed")
    jobs, results = plan([DECAY], paper_a, (0,)).jobs, tmp_path / "results"
    with ThreadPoolExecutor(1) as executor:
        carry_out(plan([DECAY], done, (0,)), done, FakeWork(), executor, 1)
        carry_out_video(plan_of_video([ALIGNMENT], filmed, (0,)), filmed, FakeVideoWork(), executor, 1)
    write_finished_jobs(ALIGNMENT, filmed, (0,), results / "alignment")
    assert take_up_paper_a(jobs, paper_a, results) == 0
    (results / "alignment").rename(results / "kept-apart")
    write_results(DECAY, collect(DECAY, done, (0,)), results, done, (0,))
    (results / "kept-apart/jobs.json").rename(tmp_path / "of-video.json")
    assert take_up_video([ALIGNMENT], video, (0,), results) == 0
    (tmp_path / "of-video.json").rename(results / "kept-apart/jobs.json")
    assert take_up_paper_a(jobs, paper_a, results) == len(jobs)
    assert take_up_video([ALIGNMENT], video, (0,), results) == len(plan_of_video([ALIGNMENT], video, (0,)).jobs)


def test_a_file_of_another_form_is_no_fault_for_the_reader_of_the_others(
    paper_a: Store, video: VideoStore, tmp_path: Path
) -> None:
    jobs, file = plan([DECAY], paper_a, (0,)).jobs, tmp_path / "results/some/jobs.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"runs": {}}')
    assert take_up_video([ALIGNMENT], video, (0,), tmp_path / "results") == 0
    with pytest.raises(ValueError, match=r"some/jobs\.json .*: it has no stage1"):
        take_up_paper_a(jobs, paper_a, tmp_path / "results")
    file.write_text('{"about": "video"}')
    assert take_up_paper_a(jobs, paper_a, tmp_path / "results") == 0
    with pytest.raises(ValueError, match=r"some/jobs\.json .*: it has no jobs"):
        take_up_video([ALIGNMENT], video, (0,), tmp_path / "results")


def test_a_file_of_neither_is_named_by_both(paper_a: Store, video: VideoStore, tmp_path: Path) -> None:
    jobs = plan([DECAY], paper_a, (0,)).jobs
    (tmp_path / "some").mkdir()
    (tmp_path / "some/jobs.json").write_text('{"about": "music", "runs": {}, "stage1": {}}')
    said = r"some/jobs\.json .*: about is 'music', expected 'video' or none"
    with pytest.raises(ValueError, match=said):
        take_up_paper_a(jobs, paper_a, tmp_path)
    with pytest.raises(ValueError, match=said):
        take_up_video([ALIGNMENT], video, (0,), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"about": "video", ', "Expecting property name"),
        ("[]", "it is list, expected an object"),
        ('{"about": "video"}', "it has no jobs"),
        ('{"about": "video", "jobs": []}', "jobs is list, expected an object"),
        ('{"about": "video", "jobs": {"eyes a": 3}}', "jobs['eyes a'] is int, expected an object"),
        (
            '{"about": "video", "jobs": {"eyes a": {"key": "eyes a"}}}',
            "jobs['eyes a'] has no seconds and no git_commit",
        ),
        (
            '{"about": "video", "jobs": {"eyes a": {"key": "eyes a", "seconds": "1", "git_commit": ""}}}',
            "jobs['eyes a'].seconds is str, expected a number",
        ),
        (
            '{"about": "video", "jobs": {"probe a": {"key": "probe a", "seconds": 1, "git_commit": "", "num_pairs": 1,'
            ' "bodies": [], "matching": [], "num_directions_removed": [], "sums": {"cka": 3}}}}',
            "jobs['probe a'].sums.cka is int, expected a list",
        ),
        (
            '{"about": "video", "jobs": {"probe a": {"key": "probe a", "seconds": 1, "git_commit": "", "num_pairs": 1,'
            ' "bodies": [], "num_directions_removed": [], "sums": {}}}}',
            "jobs['probe a'] has no matching",
        ),
        (
            '{"about": "video", "jobs": {"policy a": {"key": "policy a", "seconds": 1, "git_commit": "",'
            ' "revision": "b"}}}',
            "jobs['policy a'] has no tests",
        ),
        (
            '{"about": "video", "jobs": {"policy a": {"key": "policy a", "seconds": 1, "git_commit": "",'
            ' "revision": "b", "tests": {}, "config": 3}}}',
            "jobs['policy a'].config is int, expected an object",
        ),
        (
            '{"about": "video", "jobs": {"policy a": {"key": "policy a", "seconds": 1, "git_commit": "",'
            ' "revision": "b", "tests": {"lift": {"first_seed": 7}}}}}',
            "jobs['policy a'].tests['lift'] has no revision",
        ),
        (
            '{"about": "video", "jobs": {"alignment a": {"key": "alignment a", "seconds": 1, "git_commit": "",'
            ' "scores": {"retrieval": "high"}}}}',
            "jobs['alignment a'].scores.retrieval is str, expected a number",
        ),
    ],
)
def test_a_file_on_video_of_another_form_is_named_with_what_is_wrong(
    text: str, said: str, video: VideoStore, tmp_path: Path
) -> None:
    (tmp_path / "alignment").mkdir()
    (tmp_path / "alignment/jobs.json").write_text(text)
    with pytest.raises(ValueError, match=rf"alignment/jobs\.json is not what .* writes: {re.escape(said)}"):
        take_up_video([ALIGNMENT], video, (0,), tmp_path)
    assert not video.root.exists()
