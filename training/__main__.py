"""`python -m training VERB`: record, stats, stage1, stage2, export, inspect, evaluate; demo is all of them in order.

Owns the command line alone: it reads a recipe, names a run's directory and calls one function. Results go to stdout,
progress to stderr; exit 2 for a wrong call, 1 for a failed one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.vla import VLA
    from training.corpus import Corpus
    from training.recipe import Recipe, RunDirectory

GOAL_PER_TASK, GOAL_MEAN = 0.7, 0.8
VERBS = {
    "record": "record the recipe's demonstrations (resumable)",
    "stats": "pack the demonstrations and compute their statistics",
    "stage1": "train the action prior on states and actions (resumable)",
    "stage2": "train the VLA with the prior as its head (resumable)",
    "export": "write the checkpoint of a trained run",
    "inspect": "chunk error with true, image-shuffled and state-shuffled inputs",
    "evaluate": "closed loop on held-out scenes, of a checkpoint or of a served policy",
    "demo": "record, stats, stage1, stage2, export, inspect and evaluate in order",
}


class WrongCallError(ValueError):
    """Arguments that are each right and together wrong."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Both must be set before the first import of a simulator or of torch's OpenMP.
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    from training.recipe import UnknownRecipeError
    from training.simulation.registry import UnknownTaskError

    try:
        return _run(options)
    except (UnknownRecipeError, UnknownTaskError, WrongCallError) as error:
        print(f"{options.verb}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        print(f"{options.verb}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train priors and policies.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, what in VERBS.items():
        verb = verbs.add_parser(name, help=what, description=what)
        verb.add_argument("--recipe", default="demo", help="a name in training/recipes or a JSON file (default: demo)")
        verb.add_argument("--run", type=Path, help="the run's directory (default: build/runs/RECIPE)")
        verb.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        verb.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
        verb.add_argument("--workers", type=int, default=2, help="processes that simulate (default: 2)")
        if name in ("inspect", "evaluate", "demo"):
            verb.add_argument("--json", type=Path, metavar="FILE", help="also write what is printed, machine-readable")
        if name == "inspect":
            verb.add_argument("--noise-scale", type=float, help="of the initial noise, 0 to 1 (default: the model's)")
            verb.add_argument("--inference-steps", type=int, help="Euler steps (default: the model's)")
        if name in ("stage1", "stage2"):
            verb.add_argument("--until", type=int, metavar="STEP", help="stop after this step, to be resumed later")
        if name == "evaluate":
            verb.add_argument("--checkpoint", type=Path, help="evaluate this checkpoint (default: the run's)")
            verb.add_argument("--address", default="", help="evaluate a served policy: host:port of a gateway")
            verb.add_argument("--policy", default="", help="the served policy's name")
            verb.add_argument("--tasks", nargs="+", metavar="TASK", help="default: the recipe's")
            verb.add_argument("--episodes", type=int, help="per task (default: the recipe's)")
            verb.add_argument("--first-seed", type=int, help="of the held-out scenes (default: the recipe's)")
            verb.add_argument("--history", action=argparse.BooleanOptionalAction, help="default: the recipe's")
            verb.add_argument("--videos", type=Path, metavar="DIRECTORY", help="film the first episodes of each task")
    return parser


def _run(options: argparse.Namespace) -> int:
    import torch

    from training.recipe import Recipe, RunDirectory

    torch.set_num_threads(options.threads)
    recipe = Recipe.load(options.recipe)
    run = RunDirectory.of(recipe, options.run or Path("build/runs") / recipe.name)
    verb = {
        "record": _record,
        "stats": _stats,
        "stage1": _stage1,
        "stage2": _stage2,
        "export": _export,
        "inspect": _inspect,
        "evaluate": _evaluate,
        "demo": _demo,
    }[options.verb]
    verb(recipe, run, options)
    return 0


def _record(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    from training.record import record

    for task in recipe.data.tasks:
        record(
            task=task,
            directory=run.dataset(task),
            num_episodes=recipe.data.num_episodes(task),
            first_seed=recipe.data.first_seed,
            disturbed_fraction=recipe.data.disturbed_fraction,
            num_workers=options.workers,
        )
        print(f"{task}: {recipe.data.num_episodes(task)} episodes in {run.dataset(task)}")


def _stats(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    for pack in _corpus(recipe, run).packs:
        print(f"{pack.task}: {pack.num_episodes} episodes, {pack.num_frames} frames of {pack.spec.name}")
    print(f"statistics in {run.statistics}")


def _stage1(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    from training.stage1 import train_stage1

    train_stage1(_corpus(recipe, run), run.stage1, device=options.device, until=getattr(options, "until", None))
    print(f"stage 1 in {run.stage1}")


def _stage2(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    _train(_corpus(recipe, run), run, options, until=getattr(options, "until", None))
    print(f"stage 2 in {run.stage2}")


def _export(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    from training.pipeline import export

    corpus = _corpus(recipe, run)
    vla = _train(corpus, run, options)
    revision = export(
        corpus, vla, run, run.checkpoint, step=recipe.stage2.schedule.num_steps, metrics=_known_metrics(run)
    )
    print(f"revision {revision} in {run.checkpoint}")


def _inspect(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    from training.inspection import format_inspection, inspect
    from training.json_file import write_json

    corpus = _corpus(recipe, run)
    vla = _train(corpus, run, options)
    asked = {"noise_scale": options.noise_scale, "num_inference_steps": options.inference_steps}
    vla.config = replace(vla.config, **{name: value for name, value in asked.items() if value is not None})
    rows = inspect(vla, corpus.mixture(corpus.packs, landmarks=False), device=options.device)
    print(format_inspection(rows))
    if vla.config == corpus.config:
        write_json(run.root / "inspection.json", {"tasks": rows})
    if options.json:
        write_json(options.json, {"tasks": rows})


def _evaluate(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> list[Mapping[str, Any]]:
    from training.evaluate import Target, evaluate, format_table, write_results
    from training.simulation.registry import check_task

    if options.address and not options.policy:
        raise WrongCallError("--address needs --policy, the name of a policy served there")
    if options.episodes is not None and options.episodes < 1:
        raise WrongCallError(f"--episodes is {options.episodes}, expected at least 1")
    for task in options.tasks or ():
        check_task(task)
    history = recipe.evaluation.history if options.history is None else options.history
    checkpoint = None if options.address else options.checkpoint or run.checkpoint
    first_seed = recipe.evaluation.first_seed if options.first_seed is None else options.first_seed
    rows = evaluate(
        Target(checkpoint=checkpoint, address=options.address, policy=options.policy, history=history),
        tasks=options.tasks or recipe.data.tasks,
        num_episodes=options.episodes or recipe.evaluation.num_episodes,
        first_seed=first_seed,
        num_workers=options.workers,
        video_directory=options.videos,
    )
    print(format_table(rows))
    context = {"checkpoint": str(checkpoint or ""), "policy": options.policy, "history": history}
    write_results(run.evaluation / "results.json", rows, **context)
    if options.json:
        write_results(options.json, rows, **context)
    return rows


def _compare_with_goal(rows: Sequence[Mapping[str, Any]]) -> str:
    """How close a run came to what the shipped checkpoint must reach."""
    rates = {row["task"]: row["successes"] / row["episodes"] for row in rows}
    short = [f"{task} {rate:.0%}" for task, rate in rates.items() if rate < GOAL_PER_TASK]
    mean = sum(rates.values()) / len(rates)
    each = f"below it: {', '.join(short)}" if short else "all there"
    return f"goal {GOAL_PER_TASK:.0%} on each task: {each}; goal {GOAL_MEAN:.0%} on average: {mean:.0%}"


def _demo(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    started = time.monotonic()
    for name, verb in (("record", _record), ("stats", _stats), ("stage1", _stage1), ("stage2", _stage2)):
        print(f"== {name}: {VERBS[name]}", flush=True)
        verb(recipe, run, options)
    inspection = {"json": None, "noise_scale": None, "inference_steps": None}
    _inspect(recipe, run, argparse.Namespace(**vars(options) | inspection))
    if not run.checkpoint.exists():
        _export(recipe, run, options)
    evaluation = {
        "address": "", "policy": "", "checkpoint": None, "history": None, "first_seed": None, "tasks": None,
        "episodes": None, "videos": run.evaluation,
    }  # fmt: skip
    rows = _evaluate(recipe, run, argparse.Namespace(**vars(options) | evaluation))
    print(_compare_with_goal(rows))
    print(f"all of it took {(time.monotonic() - started) / 60:.0f} minutes; the checkpoint is {run.checkpoint}")


def _corpus(recipe: Recipe, run: RunDirectory) -> Corpus:
    from training.corpus import open_corpus

    return open_corpus(recipe, run)


def _train(corpus: Corpus, run: RunDirectory, options: argparse.Namespace, until: int | None = None) -> VLA:
    """The trained VLA: both stages are resumed, which takes no time once they are done."""
    from training.pipeline import train_stages

    return train_stages(corpus, run, device=options.device, until=until)


def _known_metrics(run: RunDirectory) -> dict[str, Any]:
    path = run.root / "inspection.json"
    return {"inspection": json.loads(path.read_text())["tasks"]} if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
