"""Renames that outlast a power cut: a name never stands for bytes that have not reached the disk.

Owns the order of writing, syncing and renaming. Does not own what is written, nor that it was staged on the same disk.
"""

from __future__ import annotations

import os
from pathlib import Path


def rename_durably(staged: Path, target: Path) -> None:
    """Gives a file, or a directory with all below it, its name once its content is on the disk.

    A file at `target` is replaced; a directory there must be empty or absent. Raises OSError.
    """
    for path in [*staged.rglob("*"), staged]:
        _sync(path)
    staged.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
