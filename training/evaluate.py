"""Success on held-out scenes, task by task: a table, results.json and a video each. Processes share the tasks out.

Owns playing the tasks and their rows; one episode is rollout.py's, what is kept of it episode_log.py's, the verb is
evaluate_command.py's. A source is named by data alone (`Target`), so that worker processes can build their own.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from policy.checkpoint import revision_of
from policy.policy import Policy
from premotor.client import PolicyError
from training.episode_log import EpisodeLog, PlayedEpisode
from training.gateway_identity import GatewayIdentity
from training.json_file import write_json
from training.rollout import (
    RULES,
    ChunkSource,
    Episode,
    HistoryCondition,
    LocalSource,
    RuleName,
    ServedSource,
    run_episode,
    summarise,
)
from training.seams import SeamMeter, pooled
from training.simulation.registry import embodiment, make_simulation
from training.simulation.task import Frame, Simulation
from training.video import EpisodeVideo

_FILMED_EPISODES = 3


class EvaluationError(RuntimeError):
    """The policy that is evaluated gave no chunk; the message says whom was asked and what came."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Whom to ask, and how: a checkpoint in process, or a policy's name at a gateway's address. Exactly one is given.

    `history_mode` and `history_delay` spoil the history that is given (rollout.HistoryCondition), in process only;
    `inference_delay` is how many control steps a chunk comes late, `rule` what is played where chunks overlap.
    `num_inference_steps` None leaves the Euler steps to the policy. `device` is where a checkpoint's policy runs.
    `revision` pins that of a served policy; empty leaves it to the policy's route.
    """

    checkpoint: Path | None = None
    address: str = ""
    identity: GatewayIdentity = field(default_factory=GatewayIdentity)
    policy: str = ""
    revision: str = ""
    history: bool = False
    history_mode: Literal["true", "shuffled", "frozen"] = "true"
    history_delay: int = 0
    inference_delay: int = 0
    rule: RuleName = "replace"
    num_inference_steps: int | None = None
    device: str = "cpu"

    @property
    def condition(self) -> HistoryCondition:
        return HistoryCondition(mode=self.history_mode if self.history else "none", delay_steps=self.history_delay)

    def played_by(self) -> dict[str, Any]:
        """What decides an episode beside its scene. Raises CheckpointError, or ValueError for a revision left open."""
        if self.address and not self.revision:
            raise ValueError("which revision a served policy has is left to its route: episodes are kept of one alone")
        return {
            "revision": self.revision if self.checkpoint is None else revision_of(self.checkpoint),
            "policy": self.policy,
            "history": asdict(self.condition),
            "rule": self.rule,
            "inference_delay": self.inference_delay,
            "num_inference_steps": self.num_inference_steps,
            "device": self.device,
        }

    def __post_init__(self) -> None:
        if self.inference_delay < 0:
            raise ValueError(f"inference_delay is {self.inference_delay}, expected 0 or more control steps")
        if self.address and (self.condition.mode not in ("none", "true") or self.history_delay):
            raise ValueError("a served policy is given the true history or none: spoil it in process")
        if self.address and self.num_inference_steps is not None:
            raise ValueError("num_inference_steps is for a checkpoint in process; a served policy uses its own")
        if (self.checkpoint is None) == (not self.address):
            raise ValueError("a target is either a checkpoint or an address, not both and not neither")
        if self.address and not self.policy:
            raise ValueError("an address needs the name of a policy")
        if self.revision and not self.address:
            raise ValueError("revision is of a served policy; a checkpoint has its own")


@dataclass(frozen=True, kw_only=True)
class Job:
    target: Target
    task: str
    seeds: tuple[int, ...]
    video: Path | None
    log: EpisodeLog | None = None


def evaluate(
    target: Target,
    *,
    tasks: Sequence[str],
    num_episodes: int,
    first_seed: int,
    num_workers: int = 1,
    video_directory: Path | None = None,
    log_directory: Path | None = None,
    finished: Callable[[], None] = lambda: None,
) -> list[Mapping[str, Any]]:
    """One row per task, in the order of `tasks`: what `summarise` says, and the jumps at its seams.

    Episodes are kept in `log_directory` as they are played, and those that are there are not played again; None keeps
    none. The first ones are, where the video that they would be in is not there. `finished` is called after each task.
    """
    seeds = tuple(range(first_seed, first_seed + num_episodes))
    played_by = target.played_by() if log_directory else {}
    jobs = [
        Job(
            target=target,
            task=task,
            seeds=seeds,
            video=video_directory / f"{task}.mp4" if video_directory else None,
            log=EpisodeLog(path=log_directory / f"{task}.jsonl", played_by=played_by) if log_directory else None,
        )
        for task in tasks
    ]
    rows: dict[str, Mapping[str, Any]] = {}
    if num_workers == 1:
        for job in jobs:
            rows[job.task] = run_job(job)
            finished()
    else:
        # Spawned, not forked: a forked GL context is broken.
        with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(run_job, job): job.task for job in jobs}
            try:
                for future in as_completed(futures):
                    rows[futures[future]] = future.result()
                    finished()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [rows[task] for task in tasks]


def run_job(job: Job) -> Mapping[str, Any]:
    """All episodes of one task, its first few filmed; those that its log holds are not played again."""
    torch.set_num_threads(1)
    played = job.log.read() if job.log else {}
    filmed = _to_film(job, played)

    def keep(episode: PlayedEpisode) -> None:
        if job.log is not None:
            job.log.append(episode)
        played[episode.episode.seed] = episode
        so_far = [played[seed].episode.succeeded for seed in job.seeds if seed in played]
        print(
            f"{job.task}: {sum(so_far)} of {len(so_far)} solved, {len(job.seeds)} in all", file=sys.stderr, flush=True
        )

    left = [seed for seed in job.seeds if seed not in played and seed not in filmed]
    if filmed or left:
        _play(job, filmed, left, keep)
    episodes = [played[seed] for seed in job.seeds]
    elapsed_s = sum(each.elapsed_s for each in episodes)
    return {
        **summarise(embodiment(job.task).name, job.task, [each.episode for each in episodes], elapsed_s),
        "seams": pooled([each.seams for each in episodes]),
    }


def _to_film(job: Job, played: Mapping[int, PlayedEpisode]) -> Sequence[int]:
    """The scenes of the video; none where it is there already, with all that would be in it."""
    if job.video is None:
        return ()
    filmed = job.seeds[:_FILMED_EPISODES]
    return () if job.video.is_file() and all(seed in played for seed in filmed) else filmed


def _play(job: Job, filmed: Sequence[int], left: Sequence[int], keep: Callable[[PlayedEpisode], None]) -> None:
    simulation = make_simulation(job.task)
    with closing(simulation), open_source(job) as source:

        def play(seed: int, video: EpisodeVideo | None) -> None:
            seams = SeamMeter(simulation.spec.action)
            started = time.perf_counter()
            episode = _film(simulation, source, seed, video, job.target, seams)
            keep(PlayedEpisode(episode=episode, elapsed_s=time.perf_counter() - started, seams=seams.figures()))

        if filmed:
            with _video(job, simulation) as video:
                for seed in filmed:
                    play(seed, video)
        for seed in left:
            play(seed, None)


@contextmanager
def _video(job: Job, simulation: Simulation) -> Iterator[EpisodeVideo]:
    """Half a film is none: it is there once all that belongs in it is."""
    assert job.video is not None
    video = EpisodeVideo(job.video, simulation.spec.control_rate_hz)
    try:
        yield video
        video.close()
    except BaseException:
        video.discard()
        raise


def _film(
    simulation: Simulation,
    source: ChunkSource,
    seed: int,
    video: EpisodeVideo | None,
    target: Target,
    seams: SeamMeter,
) -> Episode:
    episode = run_episode(
        simulation,
        source,
        seed,
        on_frame=video.add_frame if video is not None else None,
        inference_delay=target.inference_delay,
        rule=RULES[target.rule],
        seams=seams,
    )
    if video is None:
        return episode
    last: Frame = simulation.observe()
    video.end_episode(last, succeeded=episode.succeeded)
    return episode


@contextmanager
def open_source(job: Job) -> Iterator[ChunkSource]:
    target = job.target
    if target.checkpoint is not None:
        policy = Policy.from_checkpoint(target.checkpoint, device=target.device)
        yield LocalSource(policy, history=target.condition, num_inference_steps=target.num_inference_steps)
        return
    try:
        with target.identity.client(target.address) as client:
            yield ServedSource(
                client,
                target.policy,
                robot_id=f"sim-{job.task}",
                history=target.history,
                revision=target.revision,
            )
    except PolicyError as error:
        raise EvaluationError(f"policy {target.policy!r} at {target.address}: {error}") from error


def format_table(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]] | None = None) -> str:
    """Rows for a person: success with its interval, latency, rate; then means over all tasks and over each group's."""
    lines = [
        f"{'body':<10} {'task':<14} {'episodes':>8} {'success':>8} {'95 % interval':>15} "
        f"{'p50 ms':>8} {'p99 ms':>8} {'chunks/s':>9}"
    ]
    for row in rows:
        interval = f"{row['success_low']:.0%} to {row['success_high']:.0%}"
        lines.append(
            f"{row['embodiment']:<10} {row['task']:<14} {row['episodes']:>8} {success_rate(row):>8.0%} {interval:>15} "
            f"{row['latency_p50_ms']:>8.1f} {row['latency_p99_ms']:>8.1f} {row['chunks_per_s']:>9.1f}"
        )
    for name, tasks in {"mean over tasks": [row["task"] for row in rows], **(groups or {})}.items():
        if rates := [success_rate(row) for row in rows if row["task"] in tasks]:
            lines.append(f"{name:<34} {sum(rates) / len(rates):>8.0%}")
    return "\n".join(lines)


def format_seams(rows: Sequence[Mapping[str, Any]]) -> str:
    """Jumps for a person: of each task's action groups, at seams and elsewhere, in the body's units (seams.py)."""
    header = (
        f"{'task':<14} {'group':<14} {'jump of':<11} {'seams':>6} {'RMS':>9} {'RMS elsewhere':>14} {'largest':>9}  unit"
    )
    lines = [header]
    for row in rows:
        for group, figures in row["seams"].items():
            for quantity in ("action", "difference"):
                at_seams, elsewhere, largest = (
                    "-" if (jump := figures[f"{quantity}_{figure}"]) is None else f"{jump:.4g}"
                    for figure in ("rms", "rms_elsewhere", "max")
                )
                lines.append(
                    f"{row['task']:<14} {group:<14} {quantity:<11} {figures['num_seams']:>6} {at_seams:>9} "
                    f"{elsewhere:>14} {largest:>9}  {figures['unit']}"
                )
    return "\n".join(lines)


def success_rate(row: Mapping[str, Any]) -> float:
    return row["successes"] / row["episodes"]


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], **context: Any) -> None:
    """A list with a row per task, each with `context` added; written beside and renamed."""
    write_json(path, [{**row, **context} for row in rows])
