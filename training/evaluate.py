"""Success on held-out scenes, task by task: a table, results.json and a video each. Processes share the tasks out.

Owns the verb; one episode is rollout.py's. A source is named by data alone (`Target`), so that worker processes can
build their own.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from policy.policy import Policy
from premotor.client import PolicyError
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
from training.seams import SeamMeter
from training.simulation.registry import make_simulation
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
    """

    checkpoint: Path | None = None
    address: str = ""
    identity: GatewayIdentity = field(default_factory=GatewayIdentity)
    policy: str = ""
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


@dataclass(frozen=True, kw_only=True)
class Job:
    target: Target
    task: str
    seeds: tuple[int, ...]
    video: Path | None


def evaluate(
    target: Target,
    *,
    tasks: Sequence[str],
    num_episodes: int,
    first_seed: int,
    num_workers: int = 1,
    video_directory: Path | None = None,
) -> list[Mapping[str, Any]]:
    """One row per task, in the order of `tasks`: what `summarise` says, and the jumps at its seams."""
    seeds = tuple(range(first_seed, first_seed + num_episodes))
    jobs = [
        Job(target=target, task=task, seeds=seeds, video=video_directory / f"{task}.mp4" if video_directory else None)
        for task in tasks
    ]
    rows: dict[str, Mapping[str, Any]] = {}
    if num_workers == 1:
        rows = {job.task: run_job(job) for job in jobs}
    else:
        # Spawned, not forked: a forked GL context is broken.
        with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(run_job, job): job.task for job in jobs}
            for future in as_completed(futures):
                rows[futures[future]] = future.result()
    return [rows[task] for task in tasks]


def run_job(job: Job) -> Mapping[str, Any]:
    """All episodes of one task, its first few filmed."""
    torch.set_num_threads(1)
    simulation = make_simulation(job.task)
    video = EpisodeVideo(job.video, simulation.spec.control_rate_hz) if job.video else None
    episodes: list[Episode] = []
    seams = SeamMeter(simulation.spec.action)
    elapsed_s = 0.0
    try:
        with open_source(job) as source:
            for count, seed in enumerate(job.seeds):
                filmed = video if count < _FILMED_EPISODES else None
                started = time.perf_counter()
                episode = _film(simulation, source, seed, filmed, job.target, seams)
                elapsed_s += time.perf_counter() - started
                episodes.append(episode)
                solved = sum(episode.succeeded for episode in episodes)
                print(
                    f"{job.task}: {solved} of {len(episodes)} solved, {len(job.seeds)} in all",
                    file=sys.stderr,
                    flush=True,
                )
        if video is not None:
            video.close()
    except BaseException:
        if video is not None:
            video.discard()
        raise
    finally:
        simulation.close()
    return {**summarise(simulation.spec.name, job.task, episodes, elapsed_s), "seams": seams.figures()}


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
            yield ServedSource(client, target.policy, robot_id=f"sim-{job.task}", history=target.history)
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
