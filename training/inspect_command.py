"""`python -m training inspect`: of a run that is trained, or of any checkpoint.

Owns its arguments, which model looks at whose frames, and what is written of it. The measurement, and what frames are
to a model, are inspection.py's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.names import WrongCallError

if TYPE_CHECKING:
    from policy.checkpoint import CheckpointParts
    from policy.config import ModelConfig
    from policy.models import Model
    from training.corpus import Corpus
    from training.data.pack import Pack
    from training.recipe import Recipe, RunDirectory


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--checkpoint", type=Path, metavar="DIR",
        help="look at this one instead of the run, on the recordings of --recipe (default: its own recipe)",
    )  # fmt: skip
    verb.add_argument(
        "--held-out", action="store_true",
        help="on scenes that no training sees; the experts record two of each task (default: training frames)",
    )  # fmt: skip
    verb.add_argument("--frames", type=int, metavar="N", help="of each task (default: 384)")
    verb.add_argument("--noise-scale", type=float, help="of the initial noise, 0 to 1 (default: the model's)")
    verb.add_argument("--inference-steps", type=int, help="Euler steps (default: the model's)")


def inspect_run(recipe: Recipe, run: RunDirectory, options: argparse.Namespace) -> None:
    """Raises UntrainedRunError for one whose stage 2 is not done, WrongCallError for what it cannot be asked."""
    from training.inspection import HELD_OUT, frames_of_run, held_out_packs, scenes_of_run
    from training.json_file import write_json
    from training.pipeline import open_trained

    _check(options)
    corpus, vla = open_trained(recipe, run, device=options.device)
    vla.config = _asked(vla.config, options)
    packs, frames = corpus.packs, frames_of_run(corpus)
    if options.held_out:
        packs = held_out_packs(corpus, scenes_of_run(corpus), run.held_out, num_workers=options.workers)
        frames = dict.fromkeys(frames, HELD_OUT)
    rows = _look(vla, corpus, packs, options, frames=frames, history=recipe.stage2.history)
    if vla.config == corpus.config and not options.held_out and options.frames is None:
        write_json(run.root / "inspection.json", {"tasks": rows})
    if options.json:
        write_json(options.json, {"tasks": rows})


def inspect_checkpoint(recipe: Recipe | None, options: argparse.Namespace) -> None:
    """On the recordings of `recipe`, None for the checkpoint's own; on held-out scenes without any of them.

    Raises CheckpointError, WrongCallError for what it cannot be asked, or another ValueError.
    """
    from policy.checkpoint import read_checkpoint
    from training.corpus import checkpoint_corpus, unrecorded_corpus
    from training.inspection import HELD_OUT, frames_of_checkpoint, held_out_packs, scenes_of_checkpoint
    from training.json_file import write_json
    from training.recipe import RunDirectory

    _check(options)
    if {options.backbone, options.tuning, options.lora_rank, options.layers_from} != {None}:
        raise WrongCallError(
            "--backbone, --tuning, --lora-rank and --layers-from are a run's; "
            "a checkpoint has its own backbone and layers"
        )
    checkpoint = read_checkpoint(options.checkpoint)
    checkpoint.vla.config = _asked(checkpoint.vla.config, options)
    own = _own_recipe(checkpoint, recipe)
    recipe = recipe or own
    run = RunDirectory.of(recipe, options.run or Path("build/runs") / recipe.name)
    if options.held_out:
        corpus, scenes = unrecorded_corpus(checkpoint, recipe), scenes_of_checkpoint(checkpoint.manifest)
        packs = held_out_packs(corpus, scenes, run.held_out, num_workers=options.workers)
        frames = dict.fromkeys(scenes, HELD_OUT)
    else:
        corpus = checkpoint_corpus(checkpoint, recipe, run)
        packs, frames = corpus.packs, frames_of_checkpoint(corpus, checkpoint.manifest)
    print(f"checkpoint {checkpoint.revision} in {options.checkpoint}")
    rows = _look(checkpoint.vla, corpus, packs, options, frames=frames, history=own.stage2.history)
    if options.json:
        write_json(options.json, {"checkpoint": checkpoint.revision, "tasks": rows})


def _own_recipe(checkpoint: CheckpointParts, named: Recipe | None) -> Recipe:
    """What it was trained as; `named` where it does not say."""
    from training.recipe import Recipe

    try:
        return Recipe.of_checkpoint(checkpoint.manifest, checkpoint.revision)
    except ValueError:
        if named is None:
            raise
        return named


def _check(options: argparse.Namespace) -> None:
    if options.frames is not None and options.frames < 2:
        raise WrongCallError(f"--frames is {options.frames}, expected at least 2: one alone cannot be shuffled")


def _asked(config: ModelConfig, options: argparse.Namespace) -> ModelConfig:
    """Raises WrongCallError, before anything is recorded, for what the model cannot be asked."""
    asked = {"noise_scale": options.noise_scale, "num_inference_steps": options.inference_steps}
    try:
        return replace(config, **{name: value for name, value in asked.items() if value is not None})
    except ValueError as error:
        raise WrongCallError(str(error)) from None


def _look(
    vla: Model,
    corpus: Corpus,
    packs: Sequence[Pack],
    options: argparse.Namespace,
    *,
    frames: Mapping[str, str],
    history: bool,
) -> list[dict[str, Any]]:
    """Prints the rows and returns them; `frames` is what each task's recordings were to the model.

    `history` says whether it was trained with history.
    """
    from training.inspection import NUM_FRAMES, format_inspection, inspect

    mixture = corpus.mixture(packs, landmarks=False)
    measured = inspect(vla, mixture, num_frames=options.frames or NUM_FRAMES, device=options.device)
    rows = [{**row, "frames": frames[row["task"]], "trained_with_history": history} for row in measured]
    print(format_inspection(rows))
    return rows
