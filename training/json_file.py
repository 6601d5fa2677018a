"""JSON on disk, whole or not at all: written beside its place and renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Any) -> None:
    """Makes the directory when it is not there; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(json.dumps(values, indent=2) + "\n")
    staged.replace(path)
