"""A measurement on disk: rows as they are finished, and results.json of those that were asked for.

Owns the layout of the directory and what must be the same for a second run to go on with a first. A row's own file
(`rows/TASK/RULE-DELAY.json`) holds every scene, results.json the figures. Does not own how a cell is played.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.json_file import write_json
from training.playback.cells import Cell, Refusal
from training.playback.claims import claims
from training.playback.scenes import Row, summary
from training.rollout import RuleName

_CELLS_PER_PROCESS = 25  # simulators leak a little


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """`identity` is what decides every row: the policy, its revision, the scenes and how they are played."""

    directory: Path
    identity: Mapping[str, Any]

    def row(self, cell: Cell) -> Row | None:
        """None before it was played. Raises ValueError for a row of another measurement."""
        path = self._path(cell)
        if not path.is_file():
            return None
        values = json.loads(path.read_text())
        if values["measurement"] != self.identity:
            differ = [key for key in self.identity if values["measurement"].get(key) != self.identity[key]]
            was, now = ({key: each.get(key) for key in differ} for each in (values["measurement"], self.identity))
            raise ValueError(f"{path} was measured with {was}, this run has {now}: write to another directory")
        return Row.from_json(values)

    def write(self, row: Row) -> None:
        write_json(self._path(row.cell), {"measurement": self.identity, **row.to_json()})

    def _path(self, cell: Cell) -> Path:
        return self.directory / "rows" / cell.task / f"{cell.rule}-{cell.delay_steps}.json"


def play_all(
    cells: Sequence[Cell], play: Callable[[Cell], Row], finished: Callable[[Row], None], *, num_workers: int
) -> None:
    """Every cell, one after the other or in processes of their own; the first failure ends it, what is done is kept."""
    if num_workers == 1:
        for cell in cells:
            finished(play(cell))
        return
    # Spawned, not forked: a forked GL context is broken.
    with ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=_CELLS_PER_PROCESS
    ) as pool:
        futures = [pool.submit(play, cell) for cell in cells]
        try:
            for future in as_completed(futures):
                finished(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def collect(
    measurement: Measurement, cells: Sequence[Cell], refusals: Sequence[Refusal], **context: Any
) -> dict[str, Any]:
    """results.json: what was asked for and is done, what could not be asked for, what is left, and the claims."""
    rows = {cell: row for cell in cells if (row := measurement.row(cell)) is not None}
    refused = {refusal.cell: refusal.reason for refusal in refusals}

    def why_missing(cell: Cell) -> str:
        return refused.get(cell) or ("not played yet" if cell in cells else "not asked for")

    asked = [*cells, *refused]
    tasks = list(dict.fromkeys(cell.task for cell in asked))
    rules: list[RuleName] = list(dict.fromkeys(cell.rule for cell in asked))
    return {
        **context,
        "measurement": dict(measurement.identity),
        "num_left": len(cells) - len(rows),
        "rows": [summary(row) for row in rows.values()],
        "not_applicable": [
            {"rule": cell.rule, "delay_steps": cell.delay_steps, "task": cell.task, "reason": reason}
            for cell, reason in refused.items()
        ],
        "claims": claims(rows, tasks, rules, why_missing),
    }
