"""A spec on disk while a person works on it: fields that start with TODO are open, and open fields keep it shut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from policy.embodiment import EmbodimentSpec

TODO = "TODO"


class OpenSpecError(ValueError):
    """A drafted spec that nobody has finished."""


def read_spec(path: Path) -> EmbodimentSpec:
    """Raises OpenSpecError naming every open field, ValueError for a spec that cannot be, FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"spec {path} is missing; draft one with --draft {path}")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if open_fields := list(fields_left_open(values)):
        lines = [f"  {field}: {value}" for field, value in open_fields]
        raise OpenSpecError(f"{path}: replace each of these by its value\n" + "\n".join(lines))
    try:
        return EmbodimentSpec.from_json(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fields_left_open(values: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every (field, marker), such as ("action[0].unit", "TODO rad? ...")."""
    if isinstance(values, str) and values.startswith(TODO):
        yield where, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from fields_left_open(value, f"{where}.{name}" if where else str(name))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from fields_left_open(value, f"{where}[{index}]")
