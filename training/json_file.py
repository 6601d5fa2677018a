"""JSON on disk, whole or not at all: written beside its place and renamed, or a line at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from policy.durable import rename_durably


def write_json(path: Path, values: Any) -> None:
    """Makes the directory when it is not there; a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """As write_json does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(text)
    rename_durably(staged, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A log's lines, none where there is no log. What a kill or a full disk left of a last one is no line."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append_line(path: Path, values: Any) -> None:
    """Adds a line to a log, in the place of what is left of a last one; makes the directory when it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(values).encode() + b"\n")
