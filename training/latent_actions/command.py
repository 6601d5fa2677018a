"""`python -m training latent-actions`: eyes, then latent actions, then what they know, from clip packs.

Owns the verb's arguments and their order; a run's directory holds `eyes/`, `latent_actions/` and `probes.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.latent_actions.settings import EyesSettings, LatentActionSettings

VERB = "latent-actions"
WHAT = "train frozen eyes and latent actions on clip packs, and probe what the codes know (resumable)"


def add_latent_actions_verb(verbs: Any) -> None:
    verb: argparse.ArgumentParser = verbs.add_parser(VERB, help=WHAT, description=WHAT)
    verb.add_argument("--clips", nargs="+", type=Path, required=True, metavar="PACK", help="clip packs to train on")
    verb.add_argument("--test-clips", type=Path, metavar="PACK", help="to probe on (default: the first of --clips)")
    verb.add_argument("--run", type=Path, default=Path("build/latent-actions"), help="default: %(default)s")
    verb.add_argument("--settings", type=Path, metavar="FILE", help='JSON: {"eyes": {...}, "latent_actions": {...}}')
    verb.add_argument("--eyes", type=Path, metavar="DIR", help="read these, trained here or a vision model's directory")
    verb.add_argument(
        "--eyes-image-size", type=int, metavar="PIXELS", help="that a model of --eyes reads (default: its own)"
    )
    verb.add_argument("--masks", choices=["none", "flow", "truth"], help="default: the settings', or flow")
    verb.add_argument("--codes", type=int, metavar="N", help="of each codebook, 0 for continuous latents")
    verb.add_argument("--gap-s", type=float, metavar="SECONDS", help="between the two frames of a pair")
    verb.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    verb.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    verb.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    verb.add_argument("--json", type=Path, metavar="FILE", help="also write the probes' figures there")
    verb.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    from training.ego_video.pack import ClipPack, FramePairs
    from training.json_file import write_json
    from training.latent_actions.probes import format_figures, probe
    from training.latent_actions.train import EYES, LATENT_ACTIONS, read_eyes, train_eyes, train_latent_actions

    if options.eyes_image_size is not None and not options.eyes:
        raise ValueError("--eyes-image-size is of a model of --eyes; eyes that are trained have eyes.visual.image_size")
    eyes_settings, settings = _settings(options)
    packs = [ClipPack.open(path) for path in options.clips]
    tested = ClipPack.open(options.test_clips) if options.test_clips else packs[0]
    for pack in {each.directory: each for each in (*packs, tested)}.values():
        for name in FramePairs(pack, settings.gap_s, settings.max_gap_s).clips_without:
            print(f"{pack.directory}: {name} has no two frames {settings.gap_s:g} s apart, unused", file=sys.stderr)
    if options.eyes:
        eyes = read_eyes(options.eyes, options.eyes_image_size).to(options.device)
    else:
        eyes = train_eyes(packs, eyes_settings, options.run / EYES, seed=options.seed, device=options.device)
    model = train_latent_actions(
        packs, eyes, settings, options.run / LATENT_ACTIONS, seed=options.seed, device=options.device
    )
    figures = {
        "clips": [str(path) for path in options.clips],
        "test_clips": str(tested.directory),
        "held_out": options.test_clips is not None,
        "seed": options.seed,
        "settings": settings.to_json(),
        **probe(model, tested),
    }
    print(format_figures(figures))
    write_json(options.run / "probes.json", figures)
    if options.json:
        write_json(options.json, figures)
    return 0


def _settings(options: argparse.Namespace) -> tuple[EyesSettings, LatentActionSettings]:
    """Those of the file, with what the command line says."""
    from training.latent_actions.settings import EyesSettings, LatentActionSettings

    values = json.loads(options.settings.read_text()) if options.settings else {}
    if unknown := sorted(set(values) - {"eyes", "latent_actions"}):
        raise ValueError(f"{options.settings} has unknown keys {unknown}, expected ['eyes', 'latent_actions']")
    given = {"masks": options.masks, "num_codes": options.codes, "gap_s": options.gap_s}
    settings = LatentActionSettings.from_json(values.get("latent_actions", {}))
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    return EyesSettings.from_json(values.get("eyes", {})), settings
