"""Any folder of video files, searched to the bottom, with words where there are any.

A clip's words are those of `captions.json` in the folder, {path in the folder: instruction}, or else a .txt file of the
clip's name beside it. Does not decode: that is video_file.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from training.ego_video.sources import MASK_ENDING, FoundClip, PictureForm, ReadClip, UnusableClipError, refused

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
CAPTIONS = "captions.json"


def mp4_folder_clips(root: Path, body: str = "") -> list[FoundClip]:
    """All videos under `root`, by path. A caption without a video is a clip that cannot be used.

    Raises ValueError for a captions.json that is not an object of strings.
    """
    source = f"folder:{root.name}"
    captions = _captions(root)
    paths = {path.relative_to(root).as_posix(): path for path in video_files(root)}
    found = [
        FoundClip(name=f"{root.name}/{name}", source=source, body=body, read=partial(_read, path, captions.get(name)))
        for name, path in paths.items()
    ]
    missing = sorted(set(captions) - set(paths))
    return found + [
        refused(f"{root.name}/{name}", source, f"{CAPTIONS} names it and it is not there") for name in missing
    ]


def video_files(root: Path) -> list[Path]:
    """Hidden files are a downloader's or an operating system's, not the folder's; NAME.mask.mp4 is no clip."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not path.name.endswith(MASK_ENDING)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]


def _read(path: Path, caption: str | None, form: PictureForm) -> ReadClip:
    from training.ego_video.video_file import read_with_masks

    clip = read_with_masks(path, form)
    words = path.with_suffix(".txt")
    if caption is None and words.is_file():
        try:
            caption = words.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableClipError(f"{words.name} beside it cannot be read: {error}") from None
    return replace(clip, instruction=(caption or "").strip())


def _captions(root: Path) -> Mapping[str, str]:
    path = root / CAPTIONS
    if not path.is_file():
        return {}
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(captions, dict) or not all(isinstance(words, str) for words in captions.values()):
        raise ValueError(f"{path} is no object of strings: {{path of a video in the folder: instruction}}")
    return captions
