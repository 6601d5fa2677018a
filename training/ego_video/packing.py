"""Found clips into one clip pack: each is read, checked for length, given masks if wished, and added or skipped.

A pack appears when it is whole. A packing that is killed leaves `<directory>.tmp`, which the next one throws away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from training.ego_video.flow_masks import hand_part, opencv
from training.ego_video.motion_moments import Moments, flow_steps
from training.ego_video.pack import Clip, ClipPack, ClipPackWriter, Frames, Masks
from training.ego_video.sources import FoundClip, PictureForm, ReadClip, UnusableClipError

FlowMasks = Callable[[Frames, float], Masks]


def pack_clips(
    found: Sequence[FoundClip],
    directory: Path,
    *,
    form: PictureForm,
    gap_s: float,
    masks: FlowMasks | None = None,
    report: Callable[[str], None] = print,
) -> ClipPack:
    """The pack of all clips that can be used and last two gaps of a pair or more.

    `masks` makes a clip's masks of its frames and rate; one of which it makes none (ValueError, OpenCV's error) cannot
    be used. With form.with_masks they are the clip's own channel, or what of them lies in it where `masks` is given
    too: the hand alone, if that is what the channel shows. `report` is told of each clip that is skipped. Raises
    ValueError for two clips of one name and, where masks are asked for, ImportError without OpenCV, before the first is
    read; ValueError too when none can be used.
    """
    if not gap_s > 0:
        raise ValueError(f"gap_s is {gap_s}, expected above 0")
    repeated = sorted(name for name, times in Counter(clip.name for clip in found).items() if times > 1)
    if repeated:
        raise ValueError(f"{len(repeated)} names are those of two clips, such as {repeated[0]!r}; rename a directory")
    has_masks = masks is not None or form.with_masks
    if has_masks:
        opencv()  # the flow inside masks comes from it, whoever made them
    writer = ClipPackWriter(directory, form.image_size)
    try:
        for clip in found:
            try:
                read = clip.read(form)
                _check_length(read, gap_s)
                made, steps = _masked(read, form, masks) if has_masks else (None, None)
            except UnusableClipError as error:
                writer.skip(clip.name, str(error))
                report(f"skipped {clip.name}: {error}")
                continue
            stored = Clip(
                name=clip.name, source=clip.source, rate_hz=read.rate_hz, instruction=read.instruction, body=clip.body
            )
            writer.add(stored, read.frames, masks=made, flow_steps=steps)
        return writer.close()
    except BaseException:
        writer.discard()
        raise


def format_pack(pack: ClipPack) -> str:
    """What is in a pack, for a person: a line for each source, and what was skipped with its reason."""
    lines = []
    for source in sorted({clip.source for clip in pack.clips}):
        clips = [clip for clip in pack.clips if clip.source == source]
        rates_hz = sorted({f"{clip.rate_hz:g}" for clip in clips})
        bodies = ", ".join(sorted({clip.body for clip in clips if clip.body})) or "unknown"
        duration_s = sum(clip.num_frames / clip.rate_hz for clip in clips)
        lines.append(
            f"{source}: {len(clips)} clips, {sum(clip.num_frames for clip in clips)} frames, {duration_s:.1f} s "
            f"at {' and '.join(rates_hz[:4])} Hz, {sum(bool(clip.instruction) for clip in clips)} with an instruction, "
            f"body {bodies}"
        )
    if pack.skipped:
        lines.append(f"skipped {len(pack.skipped)}:")
        lines += [f"  {clip.name}: {clip.reason}" for clip in pack.skipped]
    masks = "with masks" if pack.masks is not None else "without masks"
    lines.append(f"{len(pack.clips)} clips of {pack.image_size} pixels, {masks}, digest {pack.digest[:12]}")
    return "\n".join(lines)


def _check_length(clip: ReadClip, gap_s: float) -> None:
    duration_s = len(clip.frames) / clip.rate_hz
    if duration_s < 2 * gap_s:
        raise UnusableClipError(f"too short: {duration_s:.2f} s, two gaps of {gap_s:g} s are needed")
    gap = round(gap_s * clip.rate_hz)
    if gap < 1:
        raise UnusableClipError(f"too slow: {clip.rate_hz:g} Hz has no two frames {gap_s:g} s apart")
    if len(clip.frames) <= gap:
        raise UnusableClipError(f"too short: {len(clip.frames)} frames, two that are {gap} apart are needed")


def _masked(clip: ReadClip, form: PictureForm, masks: FlowMasks | None) -> tuple[Masks, Moments]:
    if form.with_masks and clip.masks is None:
        raise UnusableClipError("it has no mask channel")
    try:
        made = clip.masks if masks is None else masks(clip.frames, clip.rate_hz)
        assert made is not None
        if masks is not None and clip.masks is not None:
            made = hand_part(made, clip.masks)
        return made, flow_steps(clip.frames, made)
    except (ValueError, opencv().error) as error:
        raise UnusableClipError(f"no masks can be made of it: {error}") from None
