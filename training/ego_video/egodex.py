"""EgoDex-style folders (arXiv 2505.11709): per episode `N.mp4` and `N.hdf5` of one stem, at any depth.

Only the words are read from the hdf5 file, never a pose: these clips are video without actions. Needs h5py, the extra
`egodex`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from training.ego_video.mp4_folder import video_files
from training.ego_video.sources import FoundClip, PictureForm, ReadClip, UnusableClipError, refused

_SUFFIX = ".hdf5"


def egodex_clips(root: Path, body: str = "hand") -> list[FoundClip]:
    """All episodes under `root`; one that lacks its video or its annotations cannot be used.

    Raises ImportError without h5py.
    """
    try:
        import h5py  # noqa: F401  # asked for before the first episode, not half way
    except ImportError:
        raise ImportError("reading EgoDex's annotations needs h5py: pip install 'premotor[egodex]'") from None
    source = f"egodex:{root.name}"
    videos = {_stem(root, path): path for path in video_files(root)}
    annotations = {_stem(root, path): path for path in sorted(root.rglob(f"*{_SUFFIX}"))}
    found = []
    for stem in sorted(videos.keys() | annotations.keys()):
        name = f"{root.name}/{stem}"
        if stem in videos and stem in annotations:
            read = partial(_read, videos[stem], annotations[stem])
            found.append(FoundClip(name=name, source=source, body=body, read=read))
        else:
            lacking = f"no {Path(stem).name}{_SUFFIX}" if stem in videos else "no video"
            found.append(refused(name, source, f"{lacking} beside it"))
    return found


def _stem(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _read(video: Path, annotations: Path, form: PictureForm) -> ReadClip:
    from training.ego_video.video_file import read_with_masks

    instruction = _instruction(annotations)
    return replace(read_with_masks(video, form), instruction=instruction)


def _instruction(path: Path) -> str:
    """A reversible task has two descriptions, of doing and of undoing, and says which one this episode shows."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            which = _text(file.attrs.get("which_llm_description", "1"))
            words = _text(file.attrs.get("llm_description2", "")) if which == "2" else ""
            return (words or _text(file.attrs.get("llm_description", ""))).strip()
    except (OSError, RuntimeError, KeyError) as error:
        raise UnusableClipError(f"{path.name} beside it cannot be read: {error}") from None


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
