"""`python -m training ego-clips`: which seeds are filmed, and what of a clip is kept.

Owns its arguments, the order and the optional films. The summary goes to stdout, progress to stderr; exit 1 when no
clip could be filmed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.ego_video.pack import ClipPack, Frames
    from training.simulation.hand_clips import FilmedClip, FilmSettings

EGO_CLIPS = "film simulated clips of a hand at a table, a stand-in for video of people, and score masks of them"
_EVERY = 50  # clips between two lines of progress


def add_ego_clips_verb(verbs: Any) -> None:
    """`verbs` is what ArgumentParser.add_subparsers gave."""
    verb: argparse.ArgumentParser = verbs.add_parser("ego-clips", help=EGO_CLIPS, description=EGO_CLIPS)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the pack; one that is there is replaced")
    verb.add_argument("--clips", type=int, default=300, help="how many (default: %(default)s)")
    verb.add_argument(
        "--seeds", choices=["training", "testing"], default="training", help="two ranges without a common scene"
    )
    verb.add_argument("--image-size", type=int, default=64, metavar="PIXELS", help="default: %(default)s")
    verb.add_argument("--rate-hz", type=float, default=10.0, metavar="HZ", help="of the frames (default: %(default)s)")
    verb.add_argument("--sway", type=float, default=1.0, help="of the head, 0 holds it still (default: %(default)s)")
    verb.add_argument(
        "--wanderers", type=float, default=0.3, metavar="FRACTION", help="of clips with other motion (%(default)s)"
    )
    verb.add_argument(
        "--masks", choices=["none", "flow"], default="flow", help="of motion, by optical flow (default: %(default)s)"
    )
    verb.add_argument(
        "--hand-only", action="store_true", help="masks and truth without what the hand moves: the simulator tells"
    )
    verb.add_argument("--videos", type=Path, metavar="DIR", help="also write an mp4 of each, with captions.json")
    verb.add_argument("--json", type=Path, metavar="FILE", help="also write the masks' scores, machine-readable")
    verb.set_defaults(perform=partial(_film, verb), threads=1)


def _film(verb: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from training.ego_video.packing import format_pack
    from training.simulation.hand_seeds import TESTING_SEEDS, TRAINING_SEEDS

    try:
        from training.simulation.hand_clips import FilmSettings
    except ModuleNotFoundError as error:
        raise ImportError(
            f"clips are filmed with MuJoCo, and the module {error.name!r} is not installed: pip install 'premotor[sim]'"
        ) from error
    seeds = TRAINING_SEEDS if options.seeds == "training" else TESTING_SEEDS
    if not 1 <= options.clips <= len(seeds):
        verb.error(f"--clips is {options.clips}, expected 1 to {len(seeds)}")
    if options.json and options.masks == "none":
        verb.error("--json is of the masks' scores, and --masks none makes none")
    settings = FilmSettings(
        image_size=options.image_size,
        rate_hz=options.rate_hz,
        sway=options.sway,
        wanderer_fraction=options.wanderers,
    )
    pack = _film_pack(seeds[: options.clips], settings, options)
    print(format_pack(pack))
    if pack.masks is not None:
        _score(pack, options.json)
    print(f"clip pack in {options.out}")
    return 0


def _film_pack(seeds: Sequence[int], settings: FilmSettings, options: argparse.Namespace) -> ClipPack:
    from training.ego_video.flow_masks import flow_masks, hand_part
    from training.ego_video.motion_moments import flow_steps
    from training.ego_video.pack import ClipPackWriter
    from training.simulation.hand_clips import ImpossibleClipError, clip_name, film

    captions: dict[str, str] = {}
    writer = ClipPackWriter(options.out, settings.image_size)
    try:
        for number, seed in enumerate(seeds, 1):
            try:
                filmed = film(seed, settings)
            except ImpossibleClipError as error:
                writer.skip(clip_name(seed), str(error))
                continue
            masks = flow_masks(filmed.frames, settings.rate_hz) if options.masks == "flow" else None
            if masks is not None and options.hand_only:
                masks = hand_part(masks, filmed.hand)
            truth = filmed.hand if options.hand_only else filmed.truth
            writer.add(
                filmed.clip,
                filmed.frames,
                masks=masks,
                truth=truth,
                effector=filmed.effector,
                scenery=filmed.scenery,
                flow_steps=None if masks is None else flow_steps(filmed.frames, masks),
                truth_steps=None if masks is None else flow_steps(filmed.frames, truth),
            )
            if options.videos:
                captions |= _write_film(options.videos, filmed)
            if number % _EVERY == 0:
                print(f"{number} of {len(seeds)} clips", file=sys.stderr, flush=True)
        pack = writer.close()
    except BaseException:
        writer.discard()
        raise
    if captions:
        from training.json_file import write_json

        write_json(options.videos / "captions.json", captions)
    return pack


def _score(pack: ClipPack, json_file: Path | None) -> None:
    from training.ego_video.mask_scores import score_masks
    from training.json_file import write_json

    score = score_masks(pack)
    print(
        f"masks against the simulator's: mean IoU {score.mean_iou:.3f} over the {score.num_moving} frames that move, "
        f"{score.mean_iou_of_all:.3f} over all {score.num_frames}"
    )
    for source, mean in score.sources.items():
        print(f"  {source}: {mean:.3f}")
    if json_file:
        write_json(json_file, score.as_json())


def _write_film(directory: Path, filmed: FilmedClip) -> dict[str, str]:
    """The clip as an mp4 under its name, and the words for captions.json."""
    name = f"{filmed.clip.name}.mp4"
    directory.mkdir(parents=True, exist_ok=True)
    write_mp4(directory / name, filmed.frames, filmed.clip.rate_hz)
    return {name: filmed.clip.instruction}


def write_mp4(path: Path, frames: Frames, rate_hz: float) -> None:
    """H.264 of uint8 [T, S, S, 3] at nearly the quality of the frames; S must be even."""
    import av

    staged = path.with_name(path.name + ".tmp")
    with av.open(str(staged), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    staged.replace(path)
