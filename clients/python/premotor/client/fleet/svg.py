"""Plots as SVG, of numpy arrays alone: a line, steps, bars, marks at moments.

Owns axes, scales and marks. Colours are CSS classes and variables of the page, so that one drawing is readable in light
and dark. Knows nothing of fleets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 22, 14, 40
_MOST_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Axis:
    """`label` says the unit. A logarithmic axis has its ticks at powers of ten."""

    label: str
    low: float
    high: float
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.logarithmic and self.low <= 0):
            raise ValueError(f"axis {self.label!r} runs from {self.low} to {self.high}, expected an increase")

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where they are, 0 at the low end and 1 at the high one; what lies outside is at an end."""
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log10(np.maximum(values, self.low)), np.log10(low), np.log10(high)
        return np.clip((values - low) / (high - low), 0.0, 1.0)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            return [
                10.0**power for power in range(int(np.ceil(np.log10(self.low))), int(np.floor(np.log10(self.high))) + 1)
            ]
        rough = (self.high - self.low) / _MOST_TICKS
        unit = 10.0 ** np.floor(np.log10(rough))
        step = unit * min(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
        return [float(tick) + 0.0 for tick in np.arange(np.ceil(self.low / step) * step, self.high + step / 1e6, step)]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment, or a span, on the horizontal axis."""

    start: float
    end: float
    text: str
    kind: str = "fault"


class Plot:
    """One drawing. Parts are drawn in the order in which they are added."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._title, self._x, self._y = title, x, y
        self._parts: list[str] = []

    def dots(self, x: np.ndarray, y: np.ndarray, *, kind: str = "a") -> None:
        places = "".join(f"M{px:.1f} {py:.1f}h0" for px, py in zip(*self._places(x, y), strict=True))
        self._parts.append(f'<path class="dot {kind}" d="{places}"/>')

    def line(self, x: np.ndarray, y: np.ndarray, *, kind: str = "a") -> None:
        places = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(*self._places(x, y), strict=True))
        self._parts.append(f'<polyline class="line {kind}" points="{places}"/>')

    def bars(self, starts: np.ndarray, ends: np.ndarray, heights: np.ndarray, titles: Iterable[str] = ()) -> None:
        left, top = self._places(starts, heights)
        right, _ = self._places(ends, heights)
        bottom = _HEIGHT - _BOTTOM
        texts = list(titles) or [""] * len(left)
        for x0, x1, y, text in zip(left, right, top, texts, strict=True):
            title = f"<title>{escape(text)}</title>" if text else ""
            self._parts.append(
                f'<rect class="bar" x="{x0:.1f}" y="{y:.1f}" width="{max(x1 - x0 - 1, 1):.1f}" '
                f'height="{max(bottom - y, 0):.1f}">{title}</rect>'
            )

    def level(self, y: float, text: str) -> None:
        """A horizontal line with its name."""
        (_, _), (py, _) = self._places(np.zeros(2), np.array([y, y]))
        self._parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>'
            f'<text class="small" x="{_LEFT + 4}" y="{py - 4:.1f}">{escape(text)}</text>'
        )

    def marks(self, marks: Sequence[Mark]) -> None:
        for number, mark in enumerate(marks):
            (x0, x1), _ = self._places(np.array([mark.start, mark.end]), np.full(2, self._y.high))
            height = _HEIGHT - _TOP - _BOTTOM
            self._parts.append(
                f'<rect class="mark {mark.kind}" x="{x0:.1f}" y="{_TOP}" width="{max(x1 - x0, 1.5):.1f}" '
                f'height="{height}"/><text class="small" x="{x0 + 3:.1f}" y="{_TOP + 10 + 11 * (number % 3)}">'
                f"{escape(mark.text)}</text>"
            )

    def svg(self) -> str:
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self._title)}">'
            f"{self._frame()}{''.join(self._parts)}</svg>"
        )

    def _places(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        across = _LEFT + self._x.place(np.asarray(x, float)) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - self._y.place(np.asarray(y, float)) * (_HEIGHT - _TOP - _BOTTOM)
        return across, down

    def _frame(self) -> str:
        parts = []
        bottom = _HEIGHT - _BOTTOM
        for tick in self._x.ticks():
            (px,), _ = self._places(np.array([tick]), np.array([self._y.low]))
            parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{_TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{px:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
        for tick in self._y.ticks():
            _, (py,) = self._places(np.array([self._x.low]), np.array([tick]))
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{tick:g}</text>')
        across, middle = (_LEFT + _WIDTH) / 2, (_TOP + bottom) / 2
        x_label, y_label = escape(self._x.label), escape(self._y.label)
        turned = f"translate(13 {middle:.0f}) rotate(-90)"
        parts.append(f'<text x="{across:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
        parts.append(f'<text transform="{turned}" text-anchor="middle">{y_label}</text>')
        return "".join(parts)
