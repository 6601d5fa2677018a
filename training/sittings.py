"""How long a run took over all its sittings: the wall clock of each part, kept with the run.

Owns `seconds.json` of a run, where parts that keep no log of their own say what they took; stages 1 and 2 have their
logs. Work that a restart repeats is counted once. Decides nothing by time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.json_file import write_json
from training.loop import seconds_spent
from training.recipe import RunDirectory

PARTS = ("record", "stats", "stage1", "stage2", "inspect", "export", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Sittings:
    """`clock` is in seconds."""

    run: RunDirectory
    clock: Callable[[], float] = time.monotonic

    @property
    def path(self) -> Path:
        return self.run.root / "seconds.json"

    def seconds(self) -> dict[str, float]:
        """Of each part so far, in the order in which they follow each other; recordings of all tasks together."""
        total: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for name, seconds in self._kept().items():
            total[name.partition(" ")[0]] += seconds
        total["stage1"], total["stage2"] = seconds_spent(self.run.stage1), seconds_spent(self.run.stage2)
        return total

    def has_recorded(self, task: str) -> bool:
        """Whether this run recorded the task, or a part of it: what others recorded took it no time."""
        return f"record {task}" in self._kept()

    @contextmanager
    def resumes(self, name: str) -> Iterator[Callable[[], None]]:
        """Work that goes on where it stopped: its time adds to that of earlier sittings, however it ends.

        Yields what is called now and then, so that a kill loses no more than since the last call.
        """
        before, started = self._kept().get(name, 0.0), self.clock()

        def keep() -> None:
            self._keep(name, before + self.clock() - started)

        try:
            yield keep
        finally:
            keep()

    @contextmanager
    def starts_again(self, name: str) -> Iterator[None]:
        """Work that is done anew at every sitting: its time takes the place of the last, once it is done."""
        started = self.clock()
        yield
        self._keep(name, self.clock() - started)

    def _kept(self) -> dict[str, float]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def _keep(self, name: str, seconds: float) -> None:
        write_json(self.path, {**self._kept(), name: round(seconds, 3)})
