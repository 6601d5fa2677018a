"""Footnotes of a table: each text has one number, whichever rows it belongs to. Owns numbers, not what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Footnotes:
    """Filled row by row; the list of them is what stands below the table."""

    numbers: dict[str, int] = field(default_factory=dict)

    def cell(self, texts: Sequence[str]) -> str:
        """The numbers of a row's footnotes."""
        return ", ".join(str(self.numbers.setdefault(text, len(self.numbers) + 1)) for text in texts)

    def as_list(self) -> str:
        return "\n".join(f"{number}. {text}" for text, number in self.numbers.items())
