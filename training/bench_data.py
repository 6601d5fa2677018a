"""The verb bench-data: every demonstration of a suite, several tasks at a time, in processes here or on a Ray cluster.

Owns which recordings a suite needs, running them and going on when one fails. One recording is record.py's, what was
recorded is described by dataset_card.py. Imports neither where the command line is read: numpy takes its number of
threads from the environment, which is set after that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from training.suite import Suite

if TYPE_CHECKING:
    from training.record import Report

RAY_REPORT_S = 60.0

Failures = dict[str, str]  # a recording's name -> what went wrong


class RecordingsFailedError(RuntimeError):
    """Some recordings failed; the others are complete."""


class MissingRayError(ImportError):
    """A cluster's address was given and Ray is not installed."""


@dataclass(frozen=True, kw_only=True)
class RecordingJob:
    """What one call of record() is given."""

    task: str
    directory: Path
    num_episodes: int
    first_seed: int
    disturbed_fraction: float
    images: bool

    @property
    def name(self) -> str:
        return f"{self.directory.parent.name}/{self.directory.name}"


def recording_jobs(suite: Suite, directory: Path, *, tasks: Sequence[str], motion: bool) -> list[RecordingJob]:
    """The longest first, so that no long one is left to run alone at the end."""
    jobs = [
        RecordingJob(
            task=task,
            directory=directory / kind / task,
            num_episodes=num_episodes,
            first_seed=seeds.first,
            disturbed_fraction=suite.disturbed_fraction,
            images=kind == "data",
        )
        for kind, (num_episodes, seeds) in suite.recordings.items()
        if num_episodes and (kind == "data" or motion)
        for task in tasks
    ]
    return sorted(jobs, key=lambda job: -job.num_episodes * suite.tasks[job.task].recording_s)


def perform(job: RecordingJob, report: Report) -> str:
    """Record one task; returns what went wrong, "" when it is complete. What runs in a process and on a cluster."""
    from training.record import record

    try:
        record(
            task=job.task,
            directory=job.directory,
            num_episodes=job.num_episodes,
            first_seed=job.first_seed,
            disturbed_fraction=job.disturbed_fraction,
            images=job.images,
            report=lambda event: report({**event, "recording": job.name}),
        )
    except Exception as error:  # the outermost edge of a recording: its failure is not that of the others
        return f"{type(error).__name__}: {error}"
    return ""


def run_in_processes(jobs: Sequence[RecordingJob], num_processes: int, report: Report) -> Failures:
    """At most `num_processes` recordings at a time, each in a process of its own: one that crashes fails alone."""
    waiting, failures = list(reversed(jobs)), Failures()
    running: dict[Connection, tuple[RecordingJob, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                job = waiting.pop()
                reader, process = _start(job)
                running[reader] = job, process
            for reader in wait(list(running)):
                assert isinstance(reader, Connection)
                job, process = running[reader]
                try:
                    event = reader.recv()
                except (EOFError, OSError):  # it ended, perhaps in the middle of a message
                    process.join()
                    event = {"error": f"the process ended with status {process.exitcode}"}
                if "error" not in event:
                    report(event)
                    continue
                del running[reader]
                reader.close()
                process.join()
                _settle(job, event["error"], failures, report)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return failures


def _start(job: RecordingJob) -> tuple[Connection, SpawnProcess]:
    # Spawned, not forked: a forked GL context is broken. A process whose reader is gone ends at its next episode.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_perform_and_send, args=(job, writer))
    process.start()
    writer.close()
    return reader, process


def _perform_and_send(job: RecordingJob, writer: Connection) -> None:
    writer.send({"error": perform(job, writer.send)})


def run_on_ray(jobs: Sequence[RecordingJob], address: str, report: Report) -> Failures:
    """Each recording as a task of one core on the cluster at `address`, whose machines share the jobs' directories.

    Not run on a real cluster so far. Raises MissingRayError with the remedy, ConnectionError when no cluster answers.
    """
    from training.record import print_report
    from training.simulation.registry import ROBOSUITE_REMEDY

    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingRayError(
            "--ray needs Ray, which is not installed here: pip install ray, in the version of the cluster; its "
            f"machines need this checkout and its simulators too: {ROBOSUITE_REMEDY}"
        ) from error
    # A process of a cluster does not inherit what training/__main__.py set here, and must have it before its imports.
    environment = {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"), "OMP_NUM_THREADS": "1"}
    ray.init(address=address, runtime_env={"env_vars": environment})
    try:
        remote = ray.remote(perform)
        pending = {remote.remote(job, print_report): job for job in jobs}
        failures = Failures()
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=RAY_REPORT_S)
            if not done:
                report({"event": "waiting", "recordings": [job.name for job in pending.values()]})
            for reference in done:
                try:
                    error = ray.get(reference)
                except RayError as lost:
                    error = f"{type(lost).__name__}: {lost}"
                _settle(pending.pop(reference), error, failures, report)
        return failures
    finally:
        ray.shutdown()


def _settle(job: RecordingJob, error: str, failures: Failures, report: Report) -> None:
    if error:
        failures[job.name] = error
        report({"event": "failed", "recording": job.name, "error": error})
    else:
        report({"event": "complete", "recording": job.name, "num_episodes": job.num_episodes})


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--suite", default="cross13", help="a name in training/suites or a JSON file (default: cross13)")
    verb.add_argument("--directory", type=Path, help="where the recordings go (default: build/bench/SUITE)")
    verb.add_argument("--tasks", nargs="+", metavar="TASK", help="record these alone (default: the suite's)")
    verb.add_argument("--motion", action="store_true", help="also the demonstrations without images, for stage 1")
    verb.add_argument("--workers", type=int, default=2, help="recordings at a time (default: 2)")
    verb.add_argument(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="record on this Ray cluster, which sees --directory too (not run on a real cluster so far)",
    )
    verb.add_argument("--card", action="store_true", help="record nothing, describe what is there")
    verb.set_defaults(threads=1)


def run(options: argparse.Namespace) -> None:
    """Raises UnknownNameError for a wrong call, RecordingsFailedError at the end."""
    from training.dataset_card import format_card, noisy_datasets, write_card
    from training.record import print_report

    suite = Suite.load(options.suite)
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}, expected at least 1")
    # A process of a cluster has another working directory.
    directory = (options.directory or Path("build/bench") / suite.name).resolve()
    failures = Failures() if options.card else _record_all(suite, directory, options, print_report)
    card = write_card(suite, directory, report=print_report)
    print(format_card(card))
    for name, count in noisy_datasets(card).items():
        failures[name] = f"{count} images are above the noise limit: delete it and record again"
    if failures:
        reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise RecordingsFailedError(f"{len(failures)} failed, the others are complete: {reasons}")


def _record_all(suite: Suite, directory: Path, options: argparse.Namespace, report: Report) -> Failures:
    tasks = tuple(dict.fromkeys(options.tasks or suite.task_names))
    suite.check_registry(tasks)
    jobs = recording_jobs(suite, directory, tasks=tasks, motion=options.motion)
    if options.ray:
        return run_on_ray(jobs, options.ray, report)
    return run_in_processes(jobs, options.workers, report)
