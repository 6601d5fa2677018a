"""Numbers of a config inside their bounds: what is not is refused by its name, with what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises ValueError for what is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")


def check_number(name: str, value: Any, least: float, most: float = math.inf) -> None:
    """Raises ValueError for what is no finite number from `least` to `most`."""
    if not _is_number(value) or not least <= value <= most:
        range_ = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} is {value!r}, expected a number {range_}")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError for what is no finite number above 0."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} is {value!r}, expected a number more than 0")


def check_one_of(name: str, value: Any, known: Collection[Any]) -> None:
    """Raises ValueError for what is none of `known`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {list(known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
