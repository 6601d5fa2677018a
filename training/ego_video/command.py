"""`python -m training ego-pack`: which directories are read as what, and where the pack goes.

Owns its arguments and the order. The summary goes to stdout, each skipped clip to stderr as it is met; exit 1 when no
clip can be used.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.ego_video.packing import FlowMasks
    from training.ego_video.sources import FoundClip

EGO_PACK = "pack video as clips without actions: folders of mp4, LeRobot cameras, EgoDex-style folders"


def add_ego_pack_verb(verbs: Any) -> None:
    """`verbs` is what ArgumentParser.add_subparsers gave."""
    verb: argparse.ArgumentParser = verbs.add_parser("ego-pack", help=EGO_PACK, description=EGO_PACK)
    sources = verb.add_argument_group("sources", "one or more, each as often as wished")
    directories = {"type": _directory, "action": "append", "default": [], "metavar": "DIR"}
    sources.add_argument("--folder", **directories, help="searched for videos; captions.json or .txt files hold words")
    sources.add_argument("--lerobot", **directories, help="a LeRobot data set, such as a recording of ours")
    sources.add_argument("--egodex", **directories, help="N.mp4 beside N.hdf5, at any depth (needs h5py)")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the pack; one that is there is replaced")
    verb.add_argument("--image-size", type=int, default=64, metavar="PIXELS", help="default: %(default)s")
    verb.add_argument(
        "--rate-hz", type=float, default=10.0, metavar="HZ", help="keep every k-th frame, at most (default: 10)"
    )
    verb.add_argument(
        "--gap-s", type=float, default=1.0, metavar="S", help="of a pair; clips under two of it are skipped (1.0)"
    )
    verb.add_argument(
        "--masks",
        choices=["none", "flow", "channel"],
        default="none",
        help="of motion by optical flow, or those that lie beside the videos: NAME.mask.mp4, observation.masks.CAMERA "
        "of a LeRobot data set; both need OpenCV (default: none)",
    )
    verb.add_argument(
        "--hand-only", action="store_true", help="with --masks flow: what of them the channel, a hand's, covers"
    )
    verb.add_argument("--body", default="", metavar="NAME", help="who moves in the folders (default: unknown)")
    verb.add_argument("--cameras", nargs="+", metavar="NAME", help="of the LeRobot data sets (default: all)")
    verb.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    verb.set_defaults(perform=partial(_pack, verb))


def _pack(verb: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from training.ego_video.packing import format_pack, pack_clips
    from training.ego_video.sources import PictureForm

    if not (options.folder or options.lerobot or options.egodex):
        verb.error("no source: name a directory with --folder, --lerobot or --egodex")
    if options.hand_only and options.masks != "flow":
        verb.error("--hand-only keeps a part of flow's masks: it needs --masks flow")
    form = PictureForm(
        image_size=options.image_size,
        max_rate_hz=options.rate_hz,
        with_masks=options.hand_only or options.masks == "channel",
    )
    found = _found(options)
    masks = _masks(options.masks)
    pack = pack_clips(found, options.out, form=form, gap_s=options.gap_s, masks=masks, report=_to_stderr)
    print(format_pack(pack))
    print(f"clip pack in {options.out}")
    return 0


def _found(options: argparse.Namespace) -> list[FoundClip]:
    from training.ego_video.egodex import egodex_clips
    from training.ego_video.lerobot_video import lerobot_clips
    from training.ego_video.mp4_folder import mp4_folder_clips

    return [
        *(clip for root in options.folder for clip in mp4_folder_clips(root, options.body)),
        *(clip for root in options.lerobot for clip in lerobot_clips(root, options.cameras)),
        *(clip for root in options.egodex for clip in egodex_clips(root)),
    ]


def _directory(path: str) -> Path:
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"no directory {path}")
    # Clips are named after it, and "." is no name.
    return Path(path).resolve()


def _masks(method: str) -> FlowMasks | None:
    if method != "flow":
        return None
    from training.ego_video.flow_masks import flow_masks

    return flow_masks


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
