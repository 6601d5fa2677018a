"""`python -m training experiment` of the experiments on video: plan, carry out, report. The verb owns its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.experiments.video.definitions.catalogue import PILOT, VIDEO_EXPERIMENTS

if TYPE_CHECKING:
    from training.experiments.video.experiment import VideoExperiment
    from training.experiments.video.store import VideoStore

EVERYTHING = "video"


def is_about_video(name: str) -> bool:
    return name in (EVERYTHING, PILOT.name, *VIDEO_EXPERIMENTS)


def run(options: argparse.Namespace, results: Path) -> int:
    from training.experiments.jobs_file import done_by
    from training.experiments.plan_of_jobs import format_plan
    from training.experiments.video.budget import VideoBudget
    from training.experiments.video.finished_jobs import take_up_finished_jobs
    from training.experiments.video.plan import PartJob, PolicyJob, plan
    from training.experiments.video.runner import carry_out
    from training.experiments.video.store import VideoStore
    from training.experiments.video.work import ChainWork
    from training.experiments.work import Recordings, check_recorded, worker_processes

    everything, is_pilot = options.name == EVERYTHING, options.name == PILOT.name
    known = {**VIDEO_EXPERIMENTS, PILOT.name: PILOT}
    asked = tuple(VIDEO_EXPERIMENTS.values()) if everything else (known[options.name],)
    budget = VideoBudget.load(options.budget)
    seeds = options.seeds or budget.seeds
    num_workers = options.workers or budget.num_workers
    root = options.store or Path("build/experiments") / f"video-{budget.name}"
    store = VideoStore(root=root, budget=budget, data_identity=Recordings())
    if options.from_results:
        with store.locked():
            num_taken = take_up_finished_jobs(asked, store, seeds, results)
        print(done_by(num_taken, results))
    planned = plan(asked, store, seeds)
    print(f"budget {budget.name} ({budget.what}), seeds {', '.join(map(str, seeds))}: {options.name}")
    print(format_plan(planned, num_workers), flush=True)
    if everything and (pilot := plan([PILOT], store, seeds)).left:
        print(
            f"of these {len(pilot.left)} first, about {pilot.hours(num_workers):.2f} hours: `python -m training "
            f"experiment {PILOT.name}` says whether the controls leave room for anything to be shown"
        )
    if options.plan:
        return 0
    report = _print_pilot if is_pilot else partial(_report, asked, json_file=options.json, results=results)
    if options.collect:
        report(store=store, seeds=seeds)
        return 0
    # Clips are filmed first, for hours: what policies read must be there before.
    check_recorded((job.run.recipe.base for job in planned.left if isinstance(job, PartJob | PolicyJob)), budget.suite)
    with store.locked():
        try:
            if planned.left:
                with worker_processes(num_workers) as executor:
                    carry_out(planned, store, ChainWork(device=budget.device), executor, num_workers)
        finally:
            # What there is when a job fails or the keyboard interrupts is a partial result, and says so.
            report(store=store, seeds=seeds)
    return 0


def _print_pilot(store: VideoStore, seeds: Sequence[int]) -> None:
    from training.experiments.video.report import format_pilot
    from training.experiments.video.results import collect

    print(format_pilot(collect(PILOT, store, seeds)))


def _report(
    asked: Sequence[VideoExperiment], *, store: VideoStore, seeds: Sequence[int], json_file: Path | None, results: Path
) -> None:
    from training.experiments.kept_results import keep_all
    from training.experiments.video.results import collect, write_results

    of = {"store": store, "seeds": seeds}
    keep_all(asked, partial(collect, **of), partial(write_results, **of), results, json_file)
