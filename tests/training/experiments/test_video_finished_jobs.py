"""What one machine did of the experiments on video is done on another: whole probes and policies, what they need apart.

Clips, eyes, codes and parts that were only told of are done until something that is left needs them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.experiments.fake_video_work import SCORES, FakeVideoWork, video_store_of
from tests.training.experiments.fake_work import recorded_here
from training.experiments.video.budget import VideoBudget
from training.experiments.video.definitions.catalogue import PILOT, VIDEO_EXPERIMENTS
from training.experiments.video.finished_jobs import take_up_finished_jobs
from training.experiments.video.plan import estimate, is_done, plan
from training.experiments.video.report import format_report
from training.experiments.video.results import collect, write_results
from training.experiments.video.runner import carry_out, perform
from training.experiments.video.store import VideoStore
from training.recipe import Recipe

SEEDS = (0, 1)
ALL = tuple(VIDEO_EXPERIMENTS.values())
QUALITY, ALIGNMENT, ADAPTATION, DECOUPLING = ALL


@pytest.fixture(scope="module")
def budget() -> VideoBudget:
    return replace(VideoBudget.load("cpu"), episodes=2, seeds=SEEDS)


@pytest.fixture(scope="module")
def elsewhere(budget: VideoBudget, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ that another machine wrote when it had carried out everything, each job in other seconds."""
    root = tmp_path_factory.mktemp("elsewhere")
    store = video_store_of(budget, root / "experiments")
    do(store, *ALL)
    outcomes = (store.root / "outcomes").iterdir()
    tests = store.root.glob("runs/*/evaluations/*.json")
    for index, path in enumerate([*sorted(outcomes), *sorted(tests)]):
        values = json.loads(path.read_text()) | {"seconds": 10.0 + index}
        path.write_text(json.dumps(values | {"git_commit": "e15e"} if "git_commit" in values else values))
    for each in ALL:
        write_results(each, collect(each, store, SEEDS), root / "results", store, SEEDS)
    return root / "results"


@pytest.fixture
def here(budget: VideoBudget, tmp_path: Path) -> VideoStore:
    """Without anything but recordings, whose bits are other ones."""
    return VideoStore(root=tmp_path / "experiments", budget=budget, data_identity=recorded_here)


def do(store: VideoStore, *experiments, seeds: tuple[int, ...] = SEEDS, work: FakeVideoWork | None = None) -> None:
    with ThreadPoolExecutor(1) as executor:
        carry_out(plan(experiments, store, seeds), store, work or FakeVideoWork(), executor, num_workers=1)


def kept(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / name / "jobs.json").read_text())


def collected(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / name / "results.json").read_text())


def some(elsewhere: Path, tmp_path: Path, name: str, values: Mapping[str, Any] | None = None) -> Path:
    """results/ with jobs.json of one experiment alone, or these values in its place."""
    (tmp_path / "some" / name).mkdir(parents=True)
    (tmp_path / "some" / name / "jobs.json").write_text(json.dumps(values or kept(elsewhere, name)))
    return tmp_path / "some"


def without_where(values: Mapping[str, Any]) -> Any:
    """A result without what says whether another machine did it."""
    plain = json.loads(json.dumps(values))
    for arm in plain["arms"]:
        for run in arm["runs"]:
            run["elsewhere"] = run["told"] = None
    return plain


def unmade_needs(store: VideoStore, *experiments) -> set[str]:
    """What jobs that are left need and what neither was made here nor is left to be made."""
    planned = plan(experiments, store, SEEDS)
    left = {job.key for job in planned.left}
    made = {job.key for job in planned.jobs if is_done(job, store) and not store.is_told(job.key)}
    return {key for job in planned.left for key in job.needs} - left - made


def jobs_of(store: VideoStore, kind: str, *experiments) -> list[Any]:
    return [job for job in plan(experiments, store, SEEDS).jobs if job.kind == kind]


def make(store: VideoStore, key: str, *experiments) -> None:
    """A job and all that it needs, here."""
    jobs = {job.key: job for job in plan(experiments, store, SEEDS).jobs}
    for need in jobs[key].needs:
        make(store, need, *experiments)
    if not is_done(jobs[key], store):
        perform(jobs[key], store, FakeVideoWork())


def test_all_that_another_machine_did_on_video_is_done_and_gives_its_results(elsewhere: Path, here: VideoStore) -> None:
    assert take_up_finished_jobs(ALL, here, SEEDS, elsewhere) == len(plan(ALL, here, SEEDS).jobs)
    assert plan(ALL, here, SEEDS).left == ()
    for each in ALL:
        values = collect(each, here, SEEDS)
        assert without_where(values) == without_where(collected(elsewhere, each.name))
        assert "e15e" in values["git_commits"] and min(values["seconds"].values()) >= 10
        runs = [run for arm in values["arms"] for run in arm["runs"]]
        assert all(run["elsewhere"] if each in (ADAPTATION, DECOUPLING) else run["told"] for run in runs)
        # And it goes on to a third machine as it came.
        write_results(each, values, here.root / "results", here, SEEDS)
        assert kept(here.root / "results", each.name) == kept(elsewhere, each.name)


def test_the_file_has_a_line_for_each_job(elsewhere: Path) -> None:
    for each in ALL:
        lines = (elsewhere / each.name / "jobs.json").read_text().splitlines()
        assert len(lines) == len(kept(elsewhere, each.name)["jobs"]) + 2


def test_only_another_seed_on_video_is_left_to_do(elsewhere: Path, here: VideoStore) -> None:
    seeds = (*SEEDS, 2)
    take_up_finished_jobs([ADAPTATION], here, seeds, elsewhere)
    left, work = plan([ADAPTATION], here, seeds).left, FakeVideoWork()
    third = plan([ADAPTATION], replace(here, root=here.root / "none"), (2,)).jobs
    # Clips are every seed's.
    assert {job.key for job in left} == {job.key for job in third}
    do(here, ADAPTATION, seeds=seeds, work=work)
    assert len(work.calls) == len(third)
    values = collect(ADAPTATION, here, seeds)
    assert {claim["estimate"]["num_seeds"] for claim in values["claims"]} == {3}
    assert {(run["seed"], run["elsewhere"]) for arm in values["arms"] for run in arm["runs"]} == {
        (0, True),
        (1, True),
        (2, False),
    }


def test_policies_that_are_to_be_tested_more_are_not_taken_up(elsewhere: Path, here: VideoStore) -> None:
    more = replace(here, budget=replace(here.budget, episodes=3))
    assert take_up_finished_jobs([DECOUPLING], more, SEEDS, elsewhere) == 0
    assert not more.root.exists()


def test_a_told_policy_that_is_to_be_tested_more_later_is_made_here_from_its_clips_on(
    elsewhere: Path, here: VideoStore
) -> None:
    take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    more, work = replace(here, budget=replace(here.budget, episodes=3)), FakeVideoWork()
    planned = plan([DECOUPLING], more, SEEDS)
    assert planned.left == planned.jobs
    # It is another training, so none of the told scenes stands for one of its own.
    tests = [job for job in planned.left if job.kind == "test"]
    assert len({round(planned.seconds[job.key] / estimate(job, more, done=0), 6) for job in tests}) == 1
    do(more, DECOUPLING, work=work)
    assert len(work.calls) == len(planned.jobs)
    assert {call[-2:] for call in work.calls if call[0] == "test"} == {("100000", "3")}
    assert plan([DECOUPLING], more, SEEDS).left == ()
    assert not any(run["elsewhere"] for arm in collect(DECOUPLING, more, SEEDS)["arms"] for run in arm["runs"])


def test_with_a_told_policy_all_its_tests_are_made_again(elsewhere: Path, here: VideoStore, tmp_path: Path) -> None:
    values = kept(elsewhere, "decoupling")
    for key, outcome in values["jobs"].items():
        if key.startswith("policy "):
            outcome["tests"]["lift"]["outcomes"] = "101"
    take_up_finished_jobs([DECOUPLING], here, SEEDS, some(elsewhere, tmp_path, "decoupling", values))
    assert plan([DECOUPLING], here, SEEDS).left == ()
    # Of lift there are scenes enough, but of a policy that is not here.
    planned = plan([DECOUPLING], replace(here, budget=replace(here.budget, episodes=3)), SEEDS)
    assert planned.left == planned.jobs


def test_tests_are_of_the_told_policy_until_one_is_trained_here(elsewhere: Path, here: VideoStore) -> None:
    take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    more = replace(here, budget=replace(here.budget, episodes=3))
    policy = jobs_of(more, "policy", DECOUPLING)[0]
    assert len(more.evaluation(policy.run, "lift").seeds) == 2
    perform(policy, more, FakeVideoWork())
    assert more.evaluation(policy.run, "lift").seeds == ()
    left = {job.key for job in plan([DECOUPLING], more, SEEDS).left}
    assert policy.key not in left and f"test {policy.run.digest} lift" in left
    # Nor is it replaced by the told one.
    take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    assert not here.is_told(policy.key)


def test_a_policy_that_was_trained_here_is_not_mixed_with_a_told_one(elsewhere: Path, here: VideoStore) -> None:
    policy = jobs_of(here, "policy", DECOUPLING)[0]
    make(here, policy.key, DECOUPLING)
    outcome = here.outcome(policy.key)
    take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    assert [job.key for job in plan([DECOUPLING], here, SEEDS).left] == [
        f"test {policy.run.digest} {task}" for task in here.budget.tasks
    ]
    assert here.outcome(policy.key) == outcome


def test_a_probe_that_was_done_here_stays(elsewhere: Path, here: VideoStore) -> None:
    probe = jobs_of(here, "probe", ALIGNMENT)[0]
    make(here, probe.key, ALIGNMENT)
    outcome = here.outcome(probe.key)
    take_up_finished_jobs([ALIGNMENT], here, SEEDS, elsewhere)
    assert plan([ALIGNMENT], here, SEEDS).left == ()
    assert here.outcome(probe.key) == outcome
    runs = [run for arm in collect(ALIGNMENT, here, SEEDS)["arms"] for run in arm["runs"]]
    assert [run["digest"] for run in runs if not run["told"]] == [probe.run.digest]


def test_one_experiment_on_video_after_another_is_taken_up_as_all_at_once(elsewhere: Path, here: VideoStore) -> None:
    for each in reversed(ALL):
        take_up_finished_jobs([each], here, SEEDS, elsewhere)
        assert plan([each], here, SEEDS).left == ()
    assert plan([PILOT], here, SEEDS).left == ()


def test_what_only_was_told_is_made_once_before_what_needs_it(elsewhere: Path, here: VideoStore) -> None:
    take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    tested = collect(DECOUPLING, here, SEEDS)
    # Probes of the same codes, which nobody did.
    planned, work = plan([DECOUPLING, ALIGNMENT], here, SEEDS), FakeVideoWork()
    assert unmade_needs(here, DECOUPLING, ALIGNMENT) == set()
    assert {job.kind for job in planned.left} == {"clips", "eyes", "codes", "probe"}
    assert planned.counts()["eyes"] == {"all": 4, "left": 2}  # those that codes see with, and the untrained
    do(here, DECOUPLING, ALIGNMENT, work=work)
    assert len(work.calls) == len(planned.left)
    order = [call[0] for call in work.calls]
    assert order.index("clips") < order.index("eyes") < order.index("codes") < order.index("probe")
    assert plan([DECOUPLING, ALIGNMENT], here, SEEDS).left == ()
    again = collect(DECOUPLING, here, SEEDS)
    assert again["arms"] == tested["arms"] and again["claims"] == tested["claims"]


def test_a_told_part_is_done_exactly_while_nothing_left_needs_it(elsewhere: Path, here: VideoStore) -> None:
    take_up_finished_jobs([ADAPTATION], here, SEEDS, elsewhere)
    policy = next(
        job
        for job in plan([ADAPTATION], here, SEEDS).jobs
        if job.kind == "policy" and job.run.recipe.variant == "joint-prior"
    )
    told = here.outcome(policy.key)
    assert told is not None
    (here.root / "outcomes" / f"policy-{policy.run.digest}.json").unlink()
    left = {job.key for job in plan([ADAPTATION], here, SEEDS).left}
    assert {policy.key, *policy.needs} <= left and unmade_needs(here, ADAPTATION) == set()
    assert not any(key.startswith("pretraining") for key in left)
    here.write_outcome(policy.key, told)
    assert plan([ADAPTATION], here, SEEDS).left == ()


def test_alignment_scores_are_those_of_the_policy_beside_which_they_stand(elsewhere: Path, here: VideoStore) -> None:
    @dataclass
    class OtherScores(FakeVideoWork):
        def make_part(self, kind, recipe, run):
            made = super().make_part(kind, recipe, run)
            return {"scores": {**SCORES, "retrieval": 0.01}} if kind == "alignment" else made

    jobs = plan([ADAPTATION], here, SEEDS).jobs
    for job in jobs:
        if job.kind not in ("policy", "test"):
            perform(job, here, OtherScores())
    take_up_finished_jobs([ADAPTATION], here, SEEDS, elsewhere)
    scores = [each for arm in collect(ADAPTATION, here, SEEDS)["arms"] for each in arm["alignment"]]
    assert scores and scores == [SCORES] * len(scores)


@pytest.mark.parametrize("num_written", [0, 1, 3, 9, 20])
def test_after_a_kill_no_part_of_a_policy_is_there_and_a_second_call_goes_on(
    num_written: int, elsewhere: Path, here: VideoStore
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Killed(VideoStore):
        def write_outcome(self, key: str, values: Mapping[str, Any]) -> None:
            if len(list(self.root.glob("outcomes/*.json"))) == num_written:
                raise KeyboardInterrupt
            super().write_outcome(key, values)

    killed = Killed(root=here.root, budget=here.budget, data_identity=here.data_identity)
    with pytest.raises(KeyboardInterrupt):
        take_up_finished_jobs([DECOUPLING], killed, SEEDS, elsewhere)
    planned = plan([DECOUPLING], here, SEEDS)
    left = {job.key for job in planned.left}
    assert len(list(here.root.glob("outcomes/*.json"))) == num_written
    assert unmade_needs(here, DECOUPLING) == set()
    # What would be made now is for something: a policy that is left is left with its tests.
    needed = {key for job in planned.left for key in job.needs}
    assert {job.key for job in planned.left if job.kind != "test"} <= needed
    tests = [job for job in planned.jobs if job.kind == "test"]
    assert all((job.key in left) == (job.run.key in left) for job in tests)
    taken = take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    assert taken == len(left) and plan([DECOUPLING], here, SEEDS).left == ()
    assert without_where(collect(DECOUPLING, here, SEEDS)) == without_where(collected(elsewhere, "decoupling"))


def test_of_two_told_trainings_of_a_policy_the_one_with_all_tests_is_taken_whole(
    elsewhere: Path, here: VideoStore, tmp_path: Path
) -> None:
    values = kept(elsewhere, "adaptation")
    for key, outcome in values["jobs"].items():
        if key.startswith("policy "):
            outcome["key"], outcome["revision"] = f"policy again-{outcome['key'][7:]}", "again"
            del outcome["tests"]["lift"]
    known = some(elsewhere, tmp_path, "adaptation", values)
    assert take_up_finished_jobs([PILOT], here, SEEDS, known) == 0
    shutil.copytree(elsewhere / "decoupling", known / "decoupling")
    take_up_finished_jobs([DECOUPLING], here, SEEDS, known)
    runs = [run for arm in collect(DECOUPLING, here, SEEDS)["arms"] for run in arm["runs"]]
    assert "again" not in {run["revision"] for run in runs}
    assert plan([DECOUPLING], here, SEEDS).left == ()


def test_tests_of_one_training_are_added_up_over_files_each_the_longest(
    elsewhere: Path, here: VideoStore, tmp_path: Path
) -> None:
    known = tmp_path / "some"
    for name, task in (("adaptation", "lift"), ("decoupling", "assembly")):
        values = kept(elsewhere, name)
        for key, outcome in values["jobs"].items():
            if key.startswith("policy "):
                outcome["tests"][task]["outcomes"] = outcome["tests"][task]["outcomes"][:1]
        (known / name).mkdir(parents=True)
        (known / name / "jobs.json").write_text(json.dumps(values))
    take_up_finished_jobs([DECOUPLING], here, SEEDS, known)
    left = {job.run.digest for job in plan([DECOUPLING], here, SEEDS).left if job.kind == "policy"}
    shared = {job.run.digest for job in plan([ADAPTATION], here, SEEDS).jobs if job.kind == "policy"}
    asked = {job.run.digest for job in plan([DECOUPLING], here, SEEDS).jobs if job.kind == "policy"}
    assert asked & shared and left == asked - shared


def test_tests_of_other_scenes_are_no_tests_of_these(elsewhere: Path, here: VideoStore, tmp_path: Path) -> None:
    values = kept(elsewhere, "decoupling")
    for key, outcome in values["jobs"].items():
        if key.startswith("policy "):
            outcome["tests"]["lift"]["first_seed"] += 1
    assert take_up_finished_jobs([DECOUPLING], here, SEEDS, some(elsewhere, tmp_path, "decoupling", values)) == 0


def test_a_told_policy_s_tests_of_other_scenes_are_none_of_those_asked_for_later(
    elsewhere: Path, here: VideoStore
) -> None:
    take_up_finished_jobs([DECOUPLING], here, SEEDS, elsewhere)
    base = here.budget.recipe.base
    moved = replace(base, evaluation=replace(base.evaluation, first_seed=200_000))
    others = replace(here, budget=replace(here.budget, recipe=replace(here.budget.recipe, base=moved)))
    planned = plan([DECOUPLING], others, SEEDS)
    assert planned.left == planned.jobs


def test_recordings_that_part_what_recipes_share_do_not_hide_what_is_done(elsewhere: Path, here: VideoStore) -> None:
    """As when demonstrations of each number were recorded apart: two pretrainings here for one there."""

    def recorded_apart(recipe: Recipe) -> Mapping[str, str]:
        return {task: f"sha256 of {number} of {task}" for task, number in recipe.data.episodes.items()}

    apart = replace(here, data_identity=recorded_apart)
    assert len(plan(ALL, apart, SEEDS).jobs) > len(plan(ALL, here, SEEDS).jobs)
    take_up_finished_jobs(ALL, apart, SEEDS, elsewhere)
    assert plan(ALL, apart, SEEDS).left == ()


def test_a_report_on_video_says_what_came_from_elsewhere(elsewhere: Path, here: VideoStore) -> None:
    own = format_report(collected(elsewhere, "decoupling"), []) + format_report(collected(elsewhere, "alignment"), [])
    assert "another machine" not in own and "not made here" not in own
    take_up_finished_jobs(ALL, here, SEEDS, elsewhere)
    policies, probes = (format_report(collect(each, here, (0, 1, 2)), []) for each in (DECOUPLING, ALIGNMENT))
    assert "- 22 of 33 policies were trained and tested on another machine, on its own recordings" in policies
    told = len({job.run.digest for job in plan([ALIGNMENT], here, SEEDS).jobs if job.kind == "probe"})
    assert f"- {told} of {told // 2 * 3} probes were not made here: they are as results/*/jobs.json has them." in probes
