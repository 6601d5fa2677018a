"""A suite: a benchmark's tasks and bodies, how many demonstrations each gets and which scenes are for what.

Owns the suite as frozen data and its strict JSON form. Records and evaluates nothing; imports neither torch nor a
simulator.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from policy.strict_json import build
from training.names import shipped_json, unknown_name

SUITES = Path(__file__).parent / "suites"


@dataclass(frozen=True, kw_only=True)
class SeedRange:
    """Scenes by their seeds, both ends included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not (_is_count(self.first) and _is_count(self.last) and self.first <= self.last):
            raise ValueError(f"a range of seeds is {self.first!r} to {self.last!r}, expected 0 <= first <= last")

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, kw_only=True)
class SuiteSeeds:
    """What each scene is for; no scene is for two things.

    `training` demonstrations have images, `motion` ones have none and are for stage 1 alone. Whatever is chosen by
    looking at success is chosen on `tuning`; only final figures come from `testing`.
    """

    training: SeedRange
    motion: SeedRange
    tuning: SeedRange
    testing: SeedRange

    def __post_init__(self) -> None:
        ranges = sorted(((getattr(self, field.name), field.name) for field in fields(self)), key=lambda r: r[0].first)
        for (lower, lower_name), (upper, upper_name) in itertools.pairwise(ranges):
            if upper.first <= lower.last:
                raise ValueError(
                    f"seeds.{upper_name} starts at {upper.first}, expected more than {lower.last}, "
                    f"the last of seeds.{lower_name}: no scene may be for both"
                )


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """`recording_s` is about how long one demonstration takes one core: the longest recordings start first."""

    body: str
    recording_s: float

    def __post_init__(self) -> None:
        if not isinstance(self.recording_s, int | float) or self.recording_s <= 0:
            raise ValueError(f"recording_s is {self.recording_s!r}, expected more than 0 seconds")


@dataclass(frozen=True, kw_only=True)
class LowDataGroup:
    """Tasks that are trained on their first few demonstrations only."""

    tasks: tuple[str, ...]
    demonstrations: int


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark. `demonstrations` of every task are recorded; the low-data group is trained on fewer of them.

    `motion_demonstrations` of each task come on top without images. `held_out_body` is the one that leave-one-out
    experiments leave out.
    """

    name: str
    tasks: Mapping[str, SuiteTask]
    demonstrations: int
    motion_demonstrations: int
    disturbed_fraction: float
    low_data_group: LowDataGroup
    held_out_body: str
    seeds: SuiteSeeds

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty, expected at least one")
        group = self.low_data_group
        if unknown := sorted(set(group.tasks) - set(self.tasks)):
            raise ValueError(f"low_data_group.tasks names {unknown}, expected some of {sorted(self.tasks)}")
        for name, count, least, most in (
            ("demonstrations", self.demonstrations, 1, _most_episodes(self.seeds.training)),
            ("motion_demonstrations", self.motion_demonstrations, 0, _most_episodes(self.seeds.motion)),
            ("low_data_group.demonstrations", group.demonstrations, 1, self.demonstrations),
        ):
            if not _is_count(count) or not least <= count <= most:
                raise ValueError(f"{name} is {count!r}, expected {least} to {most}")
        if not isinstance(self.disturbed_fraction, int | float) or not 0.0 <= self.disturbed_fraction <= 1.0:
            raise ValueError(f"disturbed_fraction is {self.disturbed_fraction!r}, expected 0 to 1")
        if self.held_out_body not in self.bodies:
            raise ValueError(f"held_out_body is {self.held_out_body!r}, expected one of {list(self.bodies)}")

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    @property
    def bodies(self) -> tuple[str, ...]:
        """Each body once, in the order of the tasks."""
        return tuple(dict.fromkeys(task.body for task in self.tasks.values()))

    @property
    def recordings(self) -> Mapping[str, tuple[int, SeedRange]]:
        """By the directory they go to: how many demonstrations of each task, of which scenes."""
        return {
            "data": (self.demonstrations, self.seeds.training),
            "motion": (self.motion_demonstrations, self.seeds.motion),
        }

    def tasks_of(self, body: str) -> tuple[str, ...]:
        return tuple(name for name, task in self.tasks.items() if task.body == body)

    def num_episodes(self, task: str) -> int:
        """How many demonstrations a policy is trained on."""
        group = self.low_data_group
        return group.demonstrations if task in group.tasks else self.demonstrations

    def check_registry(self, tasks: Sequence[str]) -> None:
        """Raises UnknownNameError, or ValueError for a body that does not play its task."""
        from training.simulation.registry import body_of

        for task in tasks:
            if task not in self.tasks:
                raise unknown_name("task", task, self.tasks, or_else=f", the tasks of suite {self.name!r}")
            if body_of(task) != self.tasks[task].body:
                raise ValueError(
                    f"suite {self.name!r}: tasks.{task}.body is {self.tasks[task].body!r}, "
                    f"the task is played by {body_of(task)!r}"
                )

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Any) -> Suite:
        """Raises ValueError that names an unknown or missing key."""
        if not isinstance(values, Mapping):
            raise ValueError(f"suite is {type(values).__name__}, expected an object")
        parts = dict(values)
        for name, part in (("tasks", _tasks), ("low_data_group", _low_data_group), ("seeds", _seeds)):
            if name in parts:
                parts[name] = part(parts[name])
        return build(cls, parts, "suite")

    @classmethod
    def load(cls, name_or_path: str) -> Suite:
        """A suite shipped in training/suites by its name, or any JSON file by its path; or UnknownNameError."""
        return cls.from_json(shipped_json("suite", name_or_path, SUITES))


def _tasks(values: Any) -> Mapping[str, SuiteTask]:
    if not isinstance(values, Mapping):
        raise ValueError(f"tasks is {type(values).__name__}, expected an object")
    return {name: build(SuiteTask, value, f"tasks.{name}") for name, value in values.items()}


def _low_data_group(values: Any) -> LowDataGroup:
    group = build(LowDataGroup, values, "low_data_group")
    return LowDataGroup(tasks=tuple(group.tasks), demonstrations=group.demonstrations)


def _seeds(values: Any) -> SuiteSeeds:
    if not isinstance(values, Mapping):
        raise ValueError(f"seeds is {type(values).__name__}, expected an object")
    ranges = {name: build(SeedRange, value, f"seeds.{name}") for name, value in values.items()}
    return build(SuiteSeeds, ranges, "seeds")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _most_episodes(seeds: SeedRange) -> int:
    """How many solved seeds a recording surely finds before it leaves the range: it gives up when half of them fail.

    A round attempts as many seeds as are missing, so three times as many as are wanted, or the few that are attempted
    before a recording is judged on top.
    """
    return max(0, min(len(seeds) // 3, len(seeds) - 20))
