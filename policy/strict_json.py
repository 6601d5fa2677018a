"""JSON as frozen data, strictly: an object becomes a dataclass or is refused by the name of what is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

_T = TypeVar("_T")


def build(kind: type[_T], values: Any, where: str) -> _T:
    """The dataclass that an object of JSON says. Raises ValueError that names an unknown or missing key and `where`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {type(values).__name__}, expected an object")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{where} has unknown keys {unknown}, expected {sorted(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def frozen(values: Any, where: str) -> dict[str, Any]:
    """An object of JSON with its lists as tuples. Raises ValueError that names `where` for anything else."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {type(values).__name__}, expected an object")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
