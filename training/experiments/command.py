"""`python -m training experiment`: plan, carry out, report. Owns its arguments and the order; everything else is asked.

A result in results/ is replaced by none that holds less (kept_results.py). `experiment report` makes every report again
from what is there, and needs no run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.experiments.definitions.catalogue import EXPERIMENTS, experiment
from training.experiments.video import command as video
from training.experiments.video.definitions.catalogue import PILOT, VIDEO_EXPERIMENTS
from training.names import WrongCallError

if TYPE_CHECKING:
    from training.experiments.experiment import Experiment
    from training.experiments.plan import Job
    from training.experiments.plan_of_jobs import Plan
    from training.experiments.runner import Work
    from training.experiments.store import Store

RESULTS = Path("results")
EVERYTHING = "all"
REPORT = "report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(EXPERIMENTS)}; {EVERYTHING} of them; {', '.join(VIDEO_EXPERIMENTS)}, on priors from video; "
        f"{video.EVERYTHING}: these; {PILOT.name}: whether their controls leave room; or {REPORT}: make every report "
        "and RESULTS.md again",
    )
    parser.add_argument(
        "--budget",
        default="cpu",
        help="cpu, gpu or a JSON file; of those on video cpu or a JSON file (default: cpu)",
    )
    parser.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="of training (default: the budget's)")
    parser.add_argument("--plan", action="store_true", help="print the jobs and hours that are left, and stop")
    parser.add_argument("--collect", action="store_true", help="report what is done so far, and carry nothing out")
    parser.add_argument(
        "--from-results",
        action="store_true",
        help="first note in the store as done what results/*/jobs.json has of these recipes, also with --plan: go on "
        "from another machine's work",
    )
    parser.add_argument("--workers", type=_num_workers, help="processes, one torch thread each (default: the budget's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument(
        "--store",
        type=Path,
        help="where runs lie (default: build/experiments/BUDGET, of those on video build/experiments/video-BUDGET)",
    )
    parser.set_defaults(threads=1)


def run(options: argparse.Namespace) -> int:
    from training.experiments.budget import Budget
    from training.experiments.finished_jobs import take_up_finished_jobs
    from training.experiments.jobs_file import done_by
    from training.experiments.plan import plan
    from training.experiments.plan_of_jobs import format_plan
    from training.experiments.store import Store
    from training.experiments.work import Recordings, TrainingWork, check_recorded

    if options.name == REPORT:
        if options.from_results:
            known = f"an experiment, {EVERYTHING} or {video.EVERYTHING}"
            raise WrongCallError(f"--from-results is for {known}, not {REPORT!r}")
        from training.experiments.report import write_reports

        for path in write_reports(RESULTS):
            print(path)
        return 0
    if video.is_about_video(options.name):
        return video.run(options, RESULTS)
    asked = tuple(EXPERIMENTS.values()) if options.name == EVERYTHING else (experiment(options.name),)
    budget = Budget.load(options.budget)
    seeds = options.seeds or budget.seeds
    num_workers = options.workers or budget.num_workers
    root = options.store or Path("build/experiments") / budget.name
    store = Store(root=root, budget=budget, data_identity=Recordings())
    planned = plan(asked, store, seeds)
    if options.from_results:
        with store.locked():
            num_taken = take_up_finished_jobs(planned.jobs, store, RESULTS)
        planned = plan(asked, store, seeds)
        print(done_by(num_taken, RESULTS))
    print(f"budget {budget.name} ({budget.what}), seeds {', '.join(map(str, seeds))}: {options.name}")
    print(format_plan(planned, num_workers), flush=True)
    if options.plan:
        return 0
    if options.collect:
        _report(asked, store, seeds, options.json)
        return 0
    check_recorded((job.run.recipe for job in planned.left), budget.suite)
    with store.locked():
        # Before anything that may end in a report: what cannot even begin has no result.
        _pack(planned, store.root / "packing")
        try:
            _carry_out(planned, store, TrainingWork(device=budget.device), num_workers)
        finally:
            # What there is when a job fails or the keyboard interrupts is a partial result, and says so.
            _report(asked, store, seeds, options.json)
    return 0


def _report(asked: Sequence[Experiment], store: Store, seeds: Sequence[int], json_file: Path | None) -> None:
    from training.experiments.kept_results import keep_all
    from training.experiments.results import collect, write_results

    of = {"store": store, "seeds": seeds}
    keep_all(asked, partial(collect, **of), partial(write_results, **of), RESULTS, json_file)


def _carry_out(planned: Plan[Job], store: Store, work: Work, num_workers: int) -> None:
    from training.experiments.runner import carry_out
    from training.experiments.work import worker_processes

    if not planned.left:
        return
    with worker_processes(num_workers) as executor:
        carry_out(planned, store, work, executor, num_workers)


def _pack(planned: Plan[Job], directory: Path) -> None:
    """Packs are made here, once: two processes must not both make them. Statistics of it go to `directory`."""
    from training.corpus import open_corpus
    from training.recipe import RunDirectory

    seen = set()
    for job in planned.left:
        recipe = job.run.recipe
        read = (recipe.data.root, recipe.data.tasks, bool(recipe.stage1.motion_episodes))
        if read not in seen and not recipe.stage2.start_from:
            seen.add(read)
            open_corpus(recipe, RunDirectory.of(recipe, directory))


def _num_workers(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, expected at least 1")
    return number


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0,1,2") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice or one below 0")
    return seeds
