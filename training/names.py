"""What a person types: names of what is shipped, the nearest one when there is nothing, and calls that are wrong."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


class WrongCallError(ValueError):
    """Arguments of a command line that are each right and together wrong."""


class UnknownNameError(ValueError):
    """Nothing has this name; the message suggests the nearest."""


def unknown_name(what: str, name: str, known: Collection[str], or_else: str = "") -> UnknownNameError:
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]
    return UnknownNameError(
        f"unknown {what} {name!r}, did you mean {nearest!r}? Expected one of {', '.join(known)}{or_else}"
    )


def shipped_json(what: str, name_or_path: str, directory: Path) -> Mapping[str, Any]:
    """What the JSON file says that `directory` ships under a name, or any file by its path.

    Raises UnknownNameError, or ValueError for a file that holds anything but an object of JSON.
    """
    shipped = {path.stem: path for path in sorted(directory.glob("*.json"))}
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise unknown_name(what, name_or_path, shipped, or_else=" or a JSON file")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{what} {path} is not JSON: {error}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} {path} is {type(values).__name__}, expected an object")
    return values
