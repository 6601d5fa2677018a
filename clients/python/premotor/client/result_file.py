"""Where a command's result is written: refused before the work is done, and whole or not at all.

Owns the check and the writing. Does not own what is written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any


def writable_file(text: str) -> Path:
    """For argparse. Refused before the work is done rather than after."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} came, expected a file in a folder that exists")
    return path


def write_json(path: Path | None, content: object) -> None:
    """Written beside and renamed, so that a reader never finds half of it. No path writes nothing.

    JSON has no word for what is not finite: it becomes null.
    """
    if path is None:
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
