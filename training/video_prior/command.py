"""`python -m training video-prior`: from clips and recordings to a checkpoint, or as far as it is told.

Owns its arguments. Where a part lies goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.video_prior.pipeline import VideoPrior
    from training.video_prior.recipe import VideoPriorRecipe

VIDEO_PRIOR = "a policy whose intent is learned from video: eyes, codes, pretraining, adaptation, export (resumable)"
PARTS = ("eyes", "latent-actions", "pretraining", "alignment", "adaptation", "export")


def add_video_prior_verb(verbs: Any) -> None:
    """`verbs` is what ArgumentParser.add_subparsers gave."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        "video-prior",
        help=VIDEO_PRIOR,
        description=f"{VIDEO_PRIOR}. The robots' side of the recipe is left in --run as recipe.json, "
        "which the verbs record, stats and evaluate read.",
    )
    verb.add_argument("part", nargs="?", choices=PARTS, default="export", help="make all up to this (default: export)")
    verb.add_argument(
        "--recipe", default="video-prior", help="a name in training/video_prior/recipes or a JSON file (video-prior)"
    )
    verb.add_argument("--run", type=Path, metavar="DIR", help="the run's directory (default: build/runs/RECIPE)")
    verb.add_argument("--shared", type=Path, metavar="DIR", help="of parts that runs share (default: parts in --run)")
    verb.add_argument("--clips", nargs="+", metavar="DIR", help="clip packs in place of the recipe's")
    verb.add_argument(
        "--test-clips", nargs="+", metavar="DIR", help="of pretraining: how well it foresees the codes of these packs"
    )
    verb.add_argument("--eyes", metavar="DIR", help="a vision model's directory in place of eyes that are trained here")
    verb.add_argument("--eyes-image-size", type=int, metavar="PIXELS", help="that it reads (default: its own)")
    verb.add_argument("--backbone", metavar="DIR", help="a pretrained vision-language model (default: the recipe's)")
    verb.add_argument(
        "--tuning", choices=["full", "lora", "frozen"], help="of the backbone in adaptation (default: the recipe's)"
    )
    verb.add_argument("--lora-rank", type=int, metavar="RANK", help="with --tuning lora (default: the recipe's)")
    verb.add_argument("--seed", type=int, help="of pretraining and adaptation (default: the recipe's)")
    verb.add_argument(
        "--held-out-body",
        metavar="NAME",
        help="of which the alignment learns nothing, for a score on a body never seen",
    )
    verb.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    verb.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    verb.set_defaults(perform=_perform)


def _perform(options: argparse.Namespace) -> int:
    from training.ego_video.pack import ClipPack
    from training.locked import locked
    from training.video_prior.foresight import format_foresight
    from training.video_prior.joint_pipeline import JointPrior, prior_of
    from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun

    recipe = _as_asked(VideoPriorRecipe.load(options.recipe), options)
    if options.test_clips and not recipe.pretraining.schedule.num_steps:
        raise ValueError(f"--test-clips are for what pretraining foresees, and recipe {recipe.name} has none")
    root = options.run or Path("build/runs") / recipe.name
    run = VideoPriorRun.of(recipe, root, options.shared)
    run.keep_recipe(recipe)
    prior = prior_of(recipe, run, options.device)
    with locked(run.shared, "trains"):
        where = _make(prior, options.part)
        print(f"{options.part}: {where or 'the recipe has none'}")
        if options.part == "alignment" and where is not None:
            assert isinstance(prior, JointPrior)
            for name, value in prior.alignment_scores.items():
                print(f"  {name}: {value:.4g}")
        if options.test_clips:
            print(format_foresight(prior.foresight([ClipPack.open(each) for each in options.test_clips])))
    return 0


def _as_asked(recipe: VideoPriorRecipe, options: argparse.Namespace) -> VideoPriorRecipe:
    if options.clips:
        recipe = replace(recipe, clips=tuple(options.clips))
    if options.eyes:
        recipe = replace(recipe, eyes_directory=options.eyes)
    if options.eyes_image_size is not None:
        recipe = replace(recipe, eyes_image_size=options.eyes_image_size)
    if options.held_out_body is not None:
        if recipe.joint is None:
            raise ValueError(f"--held-out-body is of an alignment, and recipe {recipe.name} has no joint")
        alignment = replace(recipe.joint.alignment, held_out_body=options.held_out_body)
        recipe = replace(recipe, joint=replace(recipe.joint, alignment=alignment))
    recipe = _with_backbone(recipe, options)
    if options.seed is not None:
        recipe = replace(recipe, base=replace(recipe.base, seed=options.seed))
    return recipe


def _with_backbone(recipe: VideoPriorRecipe, options: argparse.Namespace) -> VideoPriorRecipe:
    """The recipe with what is asked of its backbone. Its tuning is adaptation's and, of a pretrained one, its own.

    Raises ValueError for what is asked of a backbone that the recipe does not have.
    """
    from training.recipe import BackboneRecipe

    backbone, tuning = recipe.base.backbone, options.tuning
    if options.backbone:
        backbone = replace(backbone or BackboneRecipe(directory=options.backbone), directory=options.backbone)
    if backbone is None and (tuning == "lora" or options.lora_rank is not None):
        raise ValueError("--tuning lora and --lora-rank are of a pretrained model, expected --backbone DIR as well")
    if backbone is not None:
        if options.lora_rank is not None:
            backbone = replace(backbone, lora_rank=options.lora_rank)
        if tuning in ("full", "lora"):
            backbone = replace(backbone, tuning=tuning)
    adaptation = recipe.adaptation
    if recipe.joint is None and tuning is not None:
        adaptation = replace(adaptation, tuning=tuning)
    elif tuning == "frozen":
        raise ValueError(f"--tuning is 'frozen', expected 'full' or 'lora' for recipe {recipe.name}, which is joint")
    return replace(recipe, adaptation=adaptation, base=replace(recipe.base, backbone=backbone))


def _make(prior: VideoPrior, part: str) -> Path | None:
    """Everything up to `part`, and where it lies."""
    if part == "eyes":
        _ = prior.eyes
        return prior.eyes_directory
    if part == "latent-actions":
        _ = prior.latent_actions
        return prior.latent_actions_directory
    if part == "pretraining":
        _ = prior.intent
        return prior.pretraining_directory
    if part == "alignment":
        return prior.aligned()
    if part == "adaptation":
        prior.adapted()
        return prior.run.adaptation
    return prior.export()
