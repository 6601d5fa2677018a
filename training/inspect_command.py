"""`python -m training inspect`: of a run that is trained, or of any checkpoint.

Owns its arguments, which model looks at whose frames, and what is written of it. The measurement, and what frames are
to a model, are inspection.py's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.names import WrongCallError

if TYPE_CHECKING:
    from policy.checkpoint import CheckpointParts
    from policy.models import Model
    from training.corpus import Corpus
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
    """Raises UntrainedRunError for one whose stage 2 is not done."""
    from training.corpus import open_corpus
    from training.inspection import frames_of_run
    from training.json_file import write_json
    from training.pipeline import trained_vla

    _check(options)
    corpus = open_corpus(recipe, run)
    vla = trained_vla(corpus, run, device=options.device)
    rows = _look(vla, corpus, run, options, frames=frames_of_run(corpus))
    if vla.config == corpus.config and not options.held_out and options.frames is None:
        write_json(run.root / "inspection.json", {"tasks": rows})
    if options.json:
        write_json(options.json, {"tasks": rows})


def inspect_checkpoint(recipe: Recipe | None, options: argparse.Namespace) -> None:
    """On the recordings of `recipe`, None for the checkpoint's own. Raises CheckpointError, or ValueError."""
    from policy.checkpoint import read_checkpoint
    from training.corpus import checkpoint_corpus
    from training.inspection import frames_of_checkpoint
    from training.json_file import write_json
    from training.recipe import RunDirectory

    _check(options)
    if (options.backbone, options.tuning, options.lora_rank) != (None, None, None):
        raise WrongCallError("--backbone, --tuning and --lora-rank are a run's; a checkpoint has its own backbone")
    checkpoint = read_checkpoint(options.checkpoint)
    recipe = recipe or _own_recipe(checkpoint)
    run = RunDirectory.of(recipe, options.run or Path("build/runs") / recipe.name)
    corpus = checkpoint_corpus(checkpoint, recipe, run)
    frames = frames_of_checkpoint(corpus, checkpoint.manifest)
    print(f"checkpoint {checkpoint.revision} in {options.checkpoint}")
    rows = _look(checkpoint.vla, corpus, run, options, frames=frames)
    if options.json:
        write_json(options.json, {"checkpoint": checkpoint.revision, "tasks": rows})


def _own_recipe(checkpoint: CheckpointParts) -> Recipe:
    from training.recipe import Recipe

    try:
        return Recipe.from_json(checkpoint.manifest["recipe"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint.revision} does not say on what it was trained as a recipe does ({error}); "
            "name one with --recipe"
        ) from None


def _check(options: argparse.Namespace) -> None:
    if options.frames is not None and options.frames < 2:
        raise WrongCallError(f"--frames is {options.frames}, expected at least 2: one alone cannot be shuffled")


def _look(
    vla: Model, corpus: Corpus, run: RunDirectory, options: argparse.Namespace, *, frames: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Prints the rows and returns them; `frames` is what each task's recordings were to the model."""
    from training.inspection import HELD_OUT, NUM_FRAMES, format_inspection, held_out_packs, inspect

    packs = corpus.packs
    if options.held_out:
        packs = held_out_packs(corpus, run.root / "held-out", num_workers=options.workers)
        frames = dict.fromkeys(frames, HELD_OUT)
    asked = {"noise_scale": options.noise_scale, "num_inference_steps": options.inference_steps}
    vla.config = replace(vla.config, **{name: value for name, value in asked.items() if value is not None})
    mixture = corpus.mixture(packs, landmarks=False)
    measured = inspect(vla, mixture, num_frames=options.frames or NUM_FRAMES, device=options.device)
    rows = [{**row, "frames": frames[row["task"]]} for row in measured]
    print(format_inspection(rows))
    return rows
