"""`python -m training evaluate`: of a run that is trained, of any checkpoint, or of what a gateway serves.

Owns its arguments, what is played where they leave it open, and where results lie. Playing is evaluate.py's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.names import WrongCallError
from training.playback.command import RULES

if TYPE_CHECKING:
    from training.evaluate import Target
    from training.gateway_identity import GatewayIdentity
    from training.recipe import Recipe
    from training.suite import Suite

EVALUATIONS = Path("build/evaluations")
# Of every suite that is shipped.
_SCENES_OF = "cross13"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--checkpoint", type=Path, help="evaluate this checkpoint (default: the run's)")
    verb.add_argument("--address", default="", help="evaluate a served policy: host:port of a gateway")
    verb.add_argument("--policy", default="", help="the served policy's name")
    verb.add_argument("--suite", help="evaluate on the tasks of this suite, a name or a JSON file")
    verb.add_argument("--seeds", choices=["testing", "tuning"], help="the suite's scenes (default: testing)")
    verb.add_argument("--tasks", nargs="+", metavar="TASK", help="default: the suite's, or the recipe's")
    verb.add_argument("--episodes", type=int, help="per task (default: the recipe's, 50 at an address)")
    verb.add_argument("--first-seed", type=int, help="of the held-out scenes (default: the recipe's)")
    verb.add_argument(
        "--history", action=argparse.BooleanOptionalAction,
        help="default: as the recipe says; at an address, if the policy reads any",
    )  # fmt: skip
    verb.add_argument("--rule", choices=RULES, help="where chunks overlap (default: replace)")
    verb.add_argument(
        "--inference-delay", type=int, metavar="STEPS", help="after which a chunk takes over (default: 0)"
    )
    verb.add_argument("--inference-steps", type=int, help="Euler steps (default: the checkpoint's)")
    verb.add_argument("--videos", type=Path, metavar="DIRECTORY", help="film the first episodes of each task")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Who plays. `recipe` is not known of what is served; `history` holds where no argument says otherwise."""

    said: str
    checkpoint: Path | None
    revision: str
    recipe: Recipe | None
    history: bool
    history_because: str
    directory: Path  # of its results


@dataclass(frozen=True, kw_only=True)
class _Scenes:
    tasks: Sequence[str]
    first_seed: int
    num_episodes: int
    name: str  # of the file of results
    groups: Mapping[str, Sequence[str]] | None = None


def run(
    recipe: Recipe | None, options: argparse.Namespace, finished: Callable[[], None] = lambda: None
) -> list[Mapping[str, Any]]:
    """The rows of what was played; `finished` is called after each task. `recipe` None is the checkpoint's own.

    Raises WrongCallError or UnknownNameError for a wrong call, CheckpointError, or EvaluationError.
    """
    from training.evaluate import Target, evaluate, format_seams, format_table

    identity = _identity(options)
    suite = _check(recipe, options)
    subject = _served(recipe, options, identity) if options.address else _in_process(recipe, options)
    scenes = _scenes_of_suite(suite, subject, options) if suite else _scenes_of_recipe(subject, options)
    history, because = subject.history, subject.history_because
    if options.history is not None:
        history, because = options.history, f"--{'' if options.history else 'no-'}history"
    told = "with" if history else "without"
    print(f"{subject.said}, {told} history ({because}); results in {subject.directory}", flush=True)
    target = Target(
        checkpoint=subject.checkpoint,
        address=options.address,
        identity=identity,
        policy=options.policy,
        revision=subject.revision if options.address else "",
        history=history,
        inference_delay=options.inference_delay or 0,
        rule=options.rule or "replace",
        num_inference_steps=options.inference_steps,
        device=options.device,
    )
    rows = evaluate(
        target,
        tasks=scenes.tasks,
        num_episodes=scenes.num_episodes,
        first_seed=scenes.first_seed,
        num_workers=options.workers,
        video_directory=options.videos,
        log_directory=subject.directory / "episodes",
        finished=finished,
    )
    print(format_table(rows, scenes.groups))
    if _asks_for_seams(options):
        print(format_seams(rows))
    context = {
        "checkpoint": str(subject.checkpoint or ""),
        "policy": options.policy,
        "revision": subject.revision,
        "history": history,
    }
    _write(rows, context, target, subject.directory / scenes.name, options)
    return rows


def _asks_for_seams(options: argparse.Namespace) -> bool:
    return options.rule is not None or options.inference_delay is not None


def _write(
    rows: Sequence[Mapping[str, Any]], context: dict[str, Any], target: Target, path: Path, options: argparse.Namespace
) -> None:
    """What is not played as trained lies beside the results of what is, not in their place."""
    from training.evaluate import write_results

    if _asks_for_seams(options):
        context |= {"rule": target.rule, "inference_delay": target.inference_delay}
        path = path.with_name(f"{path.name}-{target.rule}-{target.inference_delay}")
    if options.inference_steps is not None:
        context["num_inference_steps"] = options.inference_steps
        path = path.with_name(f"{path.name}-{options.inference_steps}-steps")
    for file in (path.with_name(f"{path.name}.json"), options.json):
        if file is not None:
            write_results(file, rows, **context)


def _check(recipe: Recipe | None, options: argparse.Namespace) -> Suite | None:
    """What can be said before anybody is asked; the suite, if there is one."""
    from training.simulation.registry import check_task
    from training.suite import Suite

    if options.address and not options.policy:
        raise WrongCallError("--address needs --policy, the name of a policy served there")
    if options.policy and not options.address:
        raise WrongCallError("--policy needs --address, of a gateway that serves it")
    if options.address and options.checkpoint:
        raise WrongCallError("--checkpoint is played in process, and --address names a policy that is served: give one")
    if options.episodes is not None and options.episodes < 1:
        raise WrongCallError(f"--episodes is {options.episodes}, expected at least 1")
    if options.inference_delay is not None and options.inference_delay < 0:
        raise WrongCallError(f"--inference-delay is {options.inference_delay}, expected 0 or more control steps")
    if options.inference_steps is not None and options.inference_steps < 1:
        raise WrongCallError(f"--inference-steps is {options.inference_steps}, expected at least 1")
    if options.inference_steps is not None and options.address:
        raise WrongCallError("--inference-steps is for a checkpoint, and --address names a policy that has its own")
    if options.device != "cpu" and options.address:
        raise WrongCallError("--device is for a checkpoint, and --address names a policy that runs elsewhere")
    if options.seeds and not options.suite:
        raise WrongCallError("--seeds needs --suite, whose scenes it chooses; a recipe's are chosen with --first-seed")
    if options.first_seed is not None and options.suite:
        raise WrongCallError("--first-seed is for a recipe's scenes; a suite's are chosen with --seeds")
    if options.first_seed is not None and options.first_seed < 0:
        raise WrongCallError(f"--first-seed is {options.first_seed}, expected at least 0")
    for task in options.tasks or ():
        check_task(task)
    if len(set(options.tasks or ())) != len(options.tasks or ()):
        raise WrongCallError(f"--tasks names one twice: {' '.join(options.tasks)}")
    if options.suite:
        return Suite.load(options.suite)
    if options.address and recipe is None and not options.tasks:
        raise WrongCallError("--address needs --tasks or --suite: what is served does not say what it was trained on")
    return None


def _identity(options: argparse.Namespace) -> GatewayIdentity:
    from training.gateway_identity import read_identity

    try:
        return read_identity(options)
    except ValueError as error:
        raise WrongCallError(str(error)) from None


def _in_process(recipe: Recipe | None, options: argparse.Namespace) -> _Subject:
    from policy.checkpoint import revision_of, verify_files
    from training.recipe import Recipe, RunDirectory

    run = RunDirectory(root=options.run or Path("build/runs") / (recipe.name if recipe else "demo"))
    checkpoint = options.checkpoint or run.checkpoint
    manifest = verify_files(checkpoint)
    revision = revision_of(checkpoint)
    recipe = recipe or Recipe.of_checkpoint(manifest, revision)
    is_of_run = options.checkpoint is None or options.run is not None
    return _Subject(
        said=f"checkpoint {revision} in {checkpoint}",
        checkpoint=checkpoint,
        revision=revision,
        recipe=recipe,
        history=recipe.evaluation.history,
        history_because=f"recipe {recipe.name}",
        directory=run.evaluation if is_of_run else EVALUATIONS / revision,
    )


def _served(recipe: Recipe | None, options: argparse.Namespace, identity: GatewayIdentity) -> _Subject:
    """Of the revision that the policy has now: what is promoted meanwhile is not mixed in."""
    from premotor.client import PolicyError
    from training.evaluate import EvaluationError
    from training.recipe import RunDirectory

    try:
        with identity.client(options.address) as client:
            served = client.get_policy(options.policy)
    except PolicyError as error:
        raise EvaluationError(f"policy {options.policy!r} at {options.address}: {error}") from error
    own = EVALUATIONS / f"{served.name}-{served.revision}"
    return _Subject(
        said=f"policy {served.name!r} at {options.address}, revision {served.revision}",
        checkpoint=None,
        revision=served.revision,
        recipe=recipe,
        history=recipe.evaluation.history if recipe else served.history_steps > 0,
        history_because=f"recipe {recipe.name}" if recipe else f"it reads {served.history_steps} steps",
        directory=RunDirectory(root=options.run).evaluation if options.run else own,
    )


def _scenes_of_recipe(subject: _Subject, options: argparse.Namespace) -> _Scenes:
    """Raises WrongCallError for scenes that may have been trained on."""
    from training.recipe import EvaluationRecipe
    from training.suite import Suite

    evaluation = subject.recipe.evaluation if subject.recipe else EvaluationRecipe()
    first_seed = evaluation.first_seed if options.first_seed is None else options.first_seed
    num_episodes = options.episodes or evaluation.num_episodes
    if subject.recipe is None:
        least = Suite.load(_SCENES_OF).seeds.tuning.first
        if first_seed < least:
            raise WrongCallError(
                f"--first-seed is {first_seed}, expected at least {least}: what is served may be trained on those below"
            )
    else:
        try:
            played = replace(evaluation, first_seed=first_seed, num_episodes=num_episodes)
            replace(subject.recipe, evaluation=played)
        except ValueError as error:
            raise WrongCallError(f"--first-seed: {error}") from None
    return _Scenes(
        tasks=options.tasks or (subject.recipe.data.tasks if subject.recipe else ()),
        first_seed=first_seed,
        num_episodes=num_episodes,
        name="results",
    )


def _scenes_of_suite(suite: Suite, subject: _Subject, options: argparse.Namespace) -> _Scenes:
    from training.recipe import EvaluationRecipe

    tasks = options.tasks or suite.task_names
    suite.check_registry(tasks)
    chosen = options.seeds or "testing"
    seeds = suite.seeds.testing if chosen == "testing" else suite.seeds.tuning
    evaluation = subject.recipe.evaluation if subject.recipe else EvaluationRecipe()
    num_episodes = options.episodes or evaluation.num_episodes
    if num_episodes > len(seeds):
        raise WrongCallError(f"--episodes is {num_episodes}, suite {suite.name!r} has {len(seeds)} scenes for {chosen}")
    return _Scenes(
        tasks=tasks,
        first_seed=seeds.first,
        num_episodes=num_episodes,
        # A part of a suite lies beside the whole, not in its place.
        name="-".join([suite.name, chosen, *(tasks if set(tasks) != set(suite.task_names) else [])]),
        groups={"low-data group": suite.low_data_group.tasks},
    )
