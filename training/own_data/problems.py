"""What is wrong with a data set, said so that its owner can mend it: where, what came, what should, the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault. `column` and `place` are empty where a whole file is meant; `num_more` counts others of its kind."""

    file: str
    found: str
    expected: str
    remedy: str
    column: str = ""
    place: str = ""
    num_more: int = 0

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.file, self.column, self.place) if part)
        more = f" ({self.num_more} more like it)" if self.num_more else ""
        return f"{where}: {self.found}{more}; expected {self.expected}. Remedy: {self.remedy}"


class Problems:
    """Faults in the order they were found; of one kind in one column, the first stands for all."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Problem] = {}

    def add(self, kind: str, problem: Problem) -> None:
        """`kind` and the problem's column say which problems are alike."""
        key = (kind, problem.column)
        first = self._found.get(key)
        self._found[key] = problem if first is None else replace(first, num_more=first.num_more + 1)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)


class ImportRefusedError(ValueError):
    """A data set that training must not read, with every problem found."""

    def __init__(self, root: str, problems: Problems) -> None:
        self.problems = tuple(problems)
        lines = [f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1)]
        super().__init__(f"{root} is refused, nothing was written. Problems found: {len(lines)}\n" + "\n".join(lines))
