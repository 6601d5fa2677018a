"""Which result is kept: none takes the place of one that holds more. What holds less goes to build/partial instead.

Owns the comparison and both places. Collects nothing and phrases no report: `write` and report.py do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from training.experiments.report import write_reports
from training.experiments.results import results_name
from training.experiments.store import read_json
from training.json_file import write_json

# As results/ beside RESULTS.md, but not committed: pages of it link as those do.
PARTIAL = Path("build/partial/results")

Values = Mapping[str, Any]
_Experiment = TypeVar("_Experiment")


def keep_all(
    asked: Sequence[_Experiment],
    collect: Callable[[_Experiment], Values],
    write: Callable[[_Experiment, Values, Path], Path],
    results: Path,
    json_file: Path | None,
) -> None:
    """Collect and `keep` each result, make the reports again, and write all to `json_file` too."""
    collected = [collect(each) for each in asked]
    kept = [keep(values, results, partial(write, each, values)) for each, values in zip(asked, collected, strict=True)]
    remake_reports(results, some_kept=any(kept))
    if json_file:
        write_json(json_file, collected)


def keep(values: Values, results: Path, write: Callable[[Path], Path]) -> bool:
    """Write a result below `results`, or below PARTIAL where that would lose something; print where.

    `write` writes it below a directory like results/ and returns its own. Returns whether it is below `results`.
    """
    name = results_name(values["experiment"], values["budget"]["name"])
    before = read_json(results / name / "results.json")
    lost = losses(before, values) if before is not None else []
    if lost:
        print(f"{write(PARTIAL)}: partial. {results / name} stays until it is deleted, for {'; '.join(lost)}")
        return False
    print(write(results))
    shutil.rmtree(PARTIAL / name, ignore_errors=True)
    return True


def losses(before: Values, values: Values) -> list[str]:
    """What would be lost if `values` took the place of `before`; empty when it holds as much."""
    held, holds = _held(before), _held(values)
    lost = [
        f"it has {held[name]} {name}, this {holds.get(name, 0)}" for name in held if held[name] > holds.get(name, 0)
    ]
    if seeds := sorted(_trained_seeds(before) - _trained_seeds(values)):
        lost.append(f"it has policies of seed {' and '.join(map(str, seeds))}, this none")
    if not lost and held == holds and _left(values) and not _left(before):
        return [f"it is whole, this lacks {_left(values)} jobs"]
    return lost


def remake_reports(results: Path, *, some_kept: bool) -> None:
    """The reports of `results`, unless nothing of it is new, and those of PARTIAL."""
    if some_kept:
        write_reports(results)
    if any(PARTIAL.glob("*/results.json")):
        write_reports(PARTIAL)
    else:
        shutil.rmtree(PARTIAL.parent, ignore_errors=True)


def _held(values: Values) -> dict[str, int]:
    jobs = {f"finished jobs of {kind}": counts["all"] - counts["left"] for kind, counts in values["jobs"].items()}
    tests = [
        task
        for arm in values["arms"]
        for tested in arm.get("checkpoints", [arm])
        for task in tested.get("tasks", {}).values()
    ]
    return {**jobs, "test episodes": sum(task["episodes"] for task in tests)}


def _trained_seeds(values: Values) -> set[int]:
    runs = (run for arm in values["arms"] for run in arm.get("runs", ()))
    return {run["seed"] for run in runs if run.get("steps")}


def _left(values: Values) -> int:
    return sum(counts["left"] for counts in values["jobs"].values())
