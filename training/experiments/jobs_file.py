"""results/NAME/jobs.json as far as both papers' experiments have it alike: whose it is, its tests, checks by field.

Files of paper A's experiments have no `about`, those on video have VIDEO there; each reads its own. What else they hold
and what a store takes up of it is finished_jobs.py's and video/finished_jobs.py's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from policy.strict_json import build
from training.experiments.store import MadeWith

FILE = "jobs.json"
VIDEO = "video"
# What is kept of a checkpoint's config: how tests played its chunks.
PLAYED = ("execution_horizon", "action_horizon")
_KINDS = {
    "an object": (Mapping,),
    "a list": (list,),
    "text": (str,),
    "a number": (int, float),
    "a whole number": (int,),
}
Values = Mapping[str, Any]
Fields = Mapping[str, Literal["an object", "a list", "text", "a number", "a whole number"]]
_TEST: Fields = {
    "revision": "text",
    "first_seed": "a whole number",
    "outcomes": "text",
    "num_steps": "a number",
    "seconds": "a number",
}


def read_jobs_files(results: Path, about: str | None, check: Callable[[Values], None]) -> list[Values]:
    """Those below `results` that are about this, in the order of their names.

    `check` raises ValueError for one of another form. Raises ValueError that names the file, too.
    """
    found = []
    for path in sorted(results.glob(f"*/{FILE}")):
        try:
            values = checked(json.loads(path.read_text()), "it")
            if values.get("about") not in (None, VIDEO):
                raise ValueError(f"about is {values['about']!r}, expected {VIDEO!r} or none")
            if values.get("about") == about:
                check(values)
                found.append(values)
        except ValueError as error:
            raise ValueError(f"{path} is not what `experiment NAME --collect` writes: {error}") from None
    return found


def checked(values: Any, where: str, fields: Fields | None = None) -> Values:
    """An object that has these fields. Raises ValueError that says which one is missing or something else."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {type(values).__name__}, expected an object")
    fields = fields or {}
    if missing := [name for name in fields if name not in values]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}")
    for name, kind in fields.items():
        if not isinstance(values[name], _KINDS[kind]):
            found = type(values[name]).__name__
            raise ValueError(f"{where}.{name} is {found}, expected {kind}".removeprefix("it."))
    return values


def check_tests(tests: Values, where: str) -> None:
    """Of one policy, by their names, each as Evaluation.to_json. Raises ValueError."""
    for name, test in tests.items():
        made_with: Fields = {"made_with": "a list"} if "made_with" in test else {}
        here = f"{where}[{name!r}]"
        for made in checked(test, here, {**_TEST, **made_with}).get("made_with", ()):
            build(MadeWith, made, f"{here}.made_with")


def longest_tests(first: Mapping[str, Values], second: Mapping[str, Values]) -> dict[str, Values]:
    """All of one policy's; of two tests of the same the one of more scenes."""
    longest = dict(first)
    for name, test in second.items():
        longest[name] = max(longest.get(name, test), test, key=lambda test: len(test["outcomes"]))
    return longest


def has_scenes(test: Values | None, first_seed: int, num_episodes: int) -> bool:
    """Whether these scenes were tried."""
    return test is not None and len(test["outcomes"]) >= num_episodes and test["first_seed"] == first_seed


def done_by(num_jobs: int, results: Path) -> str:
    """A line on what was taken up."""
    return f"{num_jobs} jobs are done by {results}/*/{FILE}"
