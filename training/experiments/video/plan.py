"""The jobs of some experiments on video, which of them are done, and what the rest will take.

Owns what a job is, what it waits for and its estimated seconds. Carries nothing out: that is runner.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from training.experiments.plan_of_jobs import Plan, measured_factor
from training.experiments.video.budget import TRAINING_CLIPS
from training.experiments.video.experiment import CodesTraining, PolicyTraining, VideoExperiment
from training.experiments.video.probing import PROBE_VERSION
from training.experiments.video.store import CodesRun, PolicyRun, VideoStore

Kind = Literal["clips", "eyes", "codes", "probe", "pretraining", "prior", "labels", "alignment", "policy", "test"]
PartKind = Literal["pretraining", "prior", "labels", "alignment"]
KINDS: tuple[Kind, ...] = (
    "clips", "eyes", "codes", "probe", "pretraining", "prior", "labels", "alignment", "policy", "test"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClipsJob:
    """Film one of budget.CLIPS."""

    name: str
    digest: str
    kind: Kind = "clips"

    @property
    def key(self) -> str:
        return f"clips {self.name} {self.digest}"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class EyesJob:
    run: CodesRun | PolicyRun
    clips: tuple[str, ...]  # keys of what it waits for
    kind: Kind = "eyes"

    @property
    def key(self) -> str:
        return f"eyes {self.run.eyes_digest}"

    @property
    def needs(self) -> tuple[str, ...]:
        return self.clips


@dataclass(frozen=True, kw_only=True)
class CodesJob:
    run: CodesRun
    kind: Kind = "codes"

    @property
    def key(self) -> str:
        return f"codes {self.run.digest}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"eyes {self.run.eyes_digest}",)


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    run: CodesRun
    clips: tuple[str, ...]
    kind: Kind = "probe"

    @property
    def key(self) -> str:
        return f"probe v{PROBE_VERSION} {self.run.digest} {' '.join(key.split()[-1] for key in self.clips)}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"codes {self.run.digest}", *self.clips)


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """A part of a policy's chain that other policies have too; `run` is any of them."""

    kind: PartKind
    run: PolicyRun

    @property
    def key(self) -> str:
        return f"{self.kind} {_digest_of_part(self.run, self.kind)}"

    @property
    def needs(self) -> tuple[str, ...]:
        if self.kind == "prior":
            return (f"eyes {self.run.eyes_digest}",)  # whose settings are in the model's config
        codes = (f"codes {self.run.codes.digest}",) if self.run.codes else ()
        if self.kind == "alignment":
            return (*codes, f"prior {self.run.stage1_digest}", f"labels {self.run.labels_digest}")
        return codes


@dataclass(frozen=True, kw_only=True)
class PolicyJob:
    run: PolicyRun
    kind: Kind = "policy"

    @property
    def key(self) -> str:
        return self.run.key

    @property
    def needs(self) -> tuple[str, ...]:
        parts = [f"{kind} {digest}" for kind, digest in parts_of(self.run)]
        return (f"eyes {self.run.eyes_digest}", *parts)


@dataclass(frozen=True, kw_only=True)
class TestJob:
    run: PolicyRun
    task: str
    num_episodes: int
    kind: Kind = "test"

    @property
    def key(self) -> str:
        return f"test {self.run.digest} {self.task}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.run.key,)


Job = ClipsJob | EyesJob | CodesJob | ProbeJob | PartJob | PolicyJob | TestJob


def plan(experiments: Sequence[VideoExperiment], store: VideoStore, seeds: Sequence[int]) -> Plan[Job]:
    """All jobs and those left, at the budget's costs times what the costs of done jobs were off by."""
    jobs: dict[str, Job] = {}
    for job in wanted(experiments, store, seeds):
        jobs.setdefault(job.key, job)
    left = _left(list(jobs.values()), store)
    factors = _measured_factors(list(jobs.values()), store)
    return Plan(
        kinds=tuple(kind for kind in KINDS if any(job.kind == kind for job in jobs.values())),
        jobs=tuple(jobs.values()),
        left=left,
        seconds={job.key: factors[job.kind] * estimate(job, store, done=_tried_here(job, store)) for job in left},
    )


def wanted(experiments: Sequence[VideoExperiment], store: VideoStore, seeds: Sequence[int]) -> Iterator[Job]:
    """Seed by seed, so that what there is after any time has all arms; each job after those that it needs.

    What is wanted twice comes twice: number and order do not depend on any recordings.
    """
    for seed in seeds:
        for experiment in experiments:
            for arm in experiment.arms:
                if isinstance(arm.training, CodesTraining):
                    yield from _probe_jobs(store, arm.training, seed)
                else:
                    yield from _policy_jobs(store, arm.training, seed)


def from_nothing(planned: Plan[Job], store: VideoStore) -> Plan[Job]:
    """The same jobs as if none was done, at the budget's own costs."""
    seconds = {job.key: estimate(job, store, done=0) for job in planned.jobs}
    return replace(planned, left=planned.jobs, seconds=seconds)


def is_done(job: Job, store: VideoStore) -> bool:
    if isinstance(job, TestJob):
        return _tried(job, store) >= job.num_episodes
    return store.outcome(job.key) is not None


def measured(job: Job, store: VideoStore) -> float:
    """Seconds that a job has taken until now."""
    if isinstance(job, TestJob):
        return store.evaluation(job.run, job.task).seconds
    return float((store.outcome(job.key) or {"seconds": 0.0})["seconds"])


def key_where_done(job: Job, store: VideoStore) -> str:
    """A job's key on the machine that did it."""
    if isinstance(job, TestJob):
        return replace(job, run=replace(job.run, digest=store.trained_digest(job.run))).key
    return store.key_where_done(job.key)


def parts_of(run: PolicyRun) -> list[tuple[PartKind, str]]:
    """The parts of a policy's chain, each after those that it needs, with their digests."""
    kinds: tuple[PartKind, ...] = ("pretraining", "prior", "labels", "alignment")
    return [(kind, digest) for kind in kinds if (digest := _digest_of_part(run, kind))]


def estimate(job: Job, store: VideoStore, *, done: int) -> float:
    """The budget's seconds for a job, of which `done` episodes were tried."""
    costs, clips = store.budget.costs, store.budget.clips
    if isinstance(job, TestJob):
        return costs.evaluation_start_s + costs.episode_s[job.task] * (job.num_episodes - done)
    if isinstance(job, ClipsJob):
        each = costs.hand_clip_s if job.name.startswith("hands") else costs.robot_clip_s
        return costs.start_s + each * clips.number(job.name)
    if isinstance(job, EyesJob):
        return costs.start_s + costs.eyes_step_s * job.run.recipe.eyes.schedule.num_steps
    if isinstance(job, CodesJob):
        return costs.start_s + costs.codes_step_s * job.run.settings.schedule.num_steps
    if isinstance(job, ProbeJob):
        return costs.start_s + costs.probe_s
    recipe = job.run.recipe
    if isinstance(job, PolicyJob):
        step_s = costs.policy_step_s
        if recipe.joint is not None:
            step_s = costs.joint_step_s if recipe.joint.sees_clips else costs.motion_step_s
        return costs.start_s + step_s * recipe.base.stage2.schedule.num_steps
    by_kind = {
        "pretraining": costs.pretraining_step_s * recipe.pretraining.schedule.num_steps,
        "prior": costs.stage1_step_s * recipe.base.stage1.schedule.num_steps,
        "labels": costs.labels_s,
        "alignment": costs.alignment_step_s * (recipe.joint.alignment.schedule.num_steps if recipe.joint else 0),
    }
    return costs.start_s + by_kind[job.kind]


def _clips_job(store: VideoStore, name: str) -> ClipsJob:
    return ClipsJob(name=name, digest=store.clips_digest(name))


def _eyes_jobs(store: VideoStore, run: CodesRun | PolicyRun) -> Iterator[Job]:
    filmed = [_clips_job(store, name) for name in TRAINING_CLIPS]
    yield from filmed
    yield EyesJob(run=run, clips=tuple(job.key for job in filmed))


def _probe_jobs(store: VideoStore, training: CodesTraining, seed: int) -> Iterator[Job]:
    run = store.codes_run(training, seed)
    yield from _eyes_jobs(store, run)
    yield CodesJob(run=run)
    tested = [_clips_job(store, name) for name in ("hands-testing", "robots-testing")]
    yield from tested
    yield ProbeJob(run=run, clips=tuple(job.key for job in tested))


def _policy_jobs(store: VideoStore, training: PolicyTraining, seed: int) -> Iterator[Job]:
    run = store.policy_run(training, seed)
    yield from _eyes_jobs(store, run)
    if run.codes:
        yield CodesJob(run=run.codes)
    for kind, _ in parts_of(run):
        yield PartJob(kind=kind, run=run)
    yield PolicyJob(run=run)
    for task in store.budget.tasks:
        yield TestJob(run=run, task=task, num_episodes=store.budget.episodes)


def _left(jobs: Sequence[Job], store: VideoStore) -> tuple[Job, ...]:
    """Those not done, and what was only told and these need; with a policy its tests, for it will be another one."""
    left: set[str] = set()
    needed: set[str] = set()
    for job in reversed(jobs):
        if not is_done(job, store) or (job.key in needed and store.is_told(job.key)):
            left.add(job.key)
            needed.update(job.needs)
    again = {key for key in left if store.is_told(key)}
    return tuple(job for job in jobs if job.key in left or (isinstance(job, TestJob) and job.run.key in again))


def _digest_of_part(run: PolicyRun, kind: PartKind) -> str:
    return {
        "pretraining": run.pretraining_digest,
        "prior": run.stage1_digest,
        "labels": run.labels_digest,
        "alignment": run.alignment_digest,
    }[kind]


def _tried(job: Job, store: VideoStore) -> int:
    return len(store.evaluation(job.run, job.task).seeds) if isinstance(job, TestJob) else 0


def _tried_here(job: Job, store: VideoStore) -> int:
    """A test of a told policy that is left begins anew: the policy is trained here before it."""
    return 0 if isinstance(job, TestJob) and store.is_told(job.run.key) else _tried(job, store)


def _measured_factors(jobs: Sequence[Job], store: VideoStore) -> dict[Kind, float]:
    done = [job for job in jobs if is_done(job, store)]
    return {
        kind: measured_factor(
            [(estimate(job, store, done=0), measured(job, store)) for job in done if job.kind == kind]
        )
        for kind in KINDS
    }
