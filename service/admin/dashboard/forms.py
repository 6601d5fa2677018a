"""What people type into a form, as the values that the fleet is changed by.

Owns the reading of fields, in the units that people use: percent, milliseconds, minutes. Every refusal names the field,
as the form calls it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from service.errors import InvalidRequestError
from service.registry import Guard

SHARE_OF = "share_of_"


class Form:
    """The fields that came; one that was left empty did not."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    def text(self, name: str, *, most_chars: int = 2048) -> str:
        text = (self._fields.get(name) or [""])[0].strip()
        if len(text) > most_chars:
            raise InvalidRequestError(name, f"{len(text)} characters came, expected at most {most_chars}")
        return text

    def required(self, name: str) -> str:
        text = self.text(name)
        if not text:
            raise InvalidRequestError(name, "this is needed")
        return text

    def checked(self, name: str) -> bool:
        return name in self._fields

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """None for a field that was left empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise InvalidRequestError(name, f"{text!r} is not a number") from None
        if not (math.isfinite(value) and least <= value <= most):
            raise InvalidRequestError(name, f"{text} came, expected {least:g} to {most:g}")
        return value

    def share(self, name: str) -> float | None:
        """Typed in percent; 0 to 1."""
        value = self.number(name, least=0, most=100)
        return None if value is None else value / 100

    def shares(self) -> dict[str, float]:
        """By revision, from the fields of a split; empty fields are 0."""
        names = [name for name in self._fields if name.startswith(SHARE_OF)]
        return {name.removeprefix(SHARE_OF): self.share(name) or 0.0 for name in names}

    def guard(self) -> Guard:
        """Empty limits are left out, empty times are the usual ones."""
        usual = Guard()
        latency_ms = self.number("max_latency_p95_ms", least=0.1, most=60_000)
        watch_min = self.number("watch_min", least=0.1, most=24 * 60)
        return Guard(
            max_error_rate=self.share("max_error_rate"),
            max_violation_rate=self.share("max_violation_rate"),
            max_latency_p95_s=None if latency_ms is None else latency_ms / 1000,
            window_s=self.number("window_s", least=1, most=3600) or usual.window_s,
            min_requests=int(self.number("min_requests", least=1, most=1_000_000) or usual.min_requests),
            watch_s=usual.watch_s if watch_min is None else 60 * watch_min,
        )
