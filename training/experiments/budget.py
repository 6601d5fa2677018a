"""A budget: how far the experiments go on one kind of machine, and what that costs. Frozen data in budgets/*.json.

Owns its strict JSON form and the one place where a training becomes a recipe. Does not own the experiments or any run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from policy.strict_json import build
from training.experiments.experiment import BaseName, TaskGroup, Training
from training.names import shipped_json
from training.recipe import Recipe
from training.suite import Suite

BUDGETS = Path(__file__).parent / "budgets"


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Seconds of one worker for a step of a base recipe; factors multiply stage 2's."""

    stage1_s: float
    stage2_s: float
    history_factor: float
    distillation_factor: float
    start_s: float  # of a job: packs, statistics, export


@dataclass(frozen=True, kw_only=True)
class ControlCosts:
    """Seconds of a step on the subset, alike on an idle machine, by which `Budget.added_steps` was chosen.

    `distilled_s` is a step's of stage 2 that distils, `stage2_s` one's that does not; `source` is where they are from.
    """

    stage1_s: float
    stage2_s: float
    distilled_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`added_steps` is what the prior costs in steps of stage 2, on the subset, which the control gets: stage 1, and
    what distilling takes longer. It is written down, not computed: other costs must not make another run of it.

    `episodes` is how many end a run, `fewer_episodes` names experiments that end with fewer; `curve_episodes` is for
    every checkpoint before the last. `episode_s` is the mean over solved and failed episodes, `evaluation_start_s` the
    simulator's and the policy's start. `step_costs` and these are for plans alone: of cpu they are what steps usually
    took in its own logs, with all workers busy, of gpu they are estimates.
    """

    name: str
    what: str
    device: str
    num_workers: int
    hours: float
    seeds: tuple[int, ...]
    suite: Suite
    bases: Mapping[BaseName, Recipe]
    episodes: int
    curve_episodes: int
    fewer_episodes: Mapping[str, int] = field(default_factory=dict)
    motion_episodes: int
    added_steps: int
    control_costs: ControlCosts
    step_costs: Mapping[BaseName, StepCosts]
    episode_s: Mapping[str, float]
    evaluation_start_s: float

    def __post_init__(self) -> None:
        check_numbers(
            self.name,
            self.seeds,
            num_workers=self.num_workers,
            episodes=self.episodes,
            curve_episodes=self.curve_episodes,
        )
        known = self.suite.tasks
        for name, tasks in (
            *((f"bases.{base}", recipe.data.tasks) for base, recipe in self.bases.items()),
            ("episode_s", tuple(self.episode_s)),
        ):
            if unknown := sorted(set(tasks) - set(known)):
                raise ValueError(f"budget {self.name}: {name} names {unknown}, expected some of {sorted(known)}")
        if missing := sorted(set(known) - set(self.episode_s)):
            raise ValueError(f"budget {self.name}: episode_s says nothing of {missing}")
        if len(self.tasks("subset", "held-out")) != 1:
            raise ValueError(
                f"budget {self.name}: bases.subset has {self.tasks('subset', 'held-out')} of the held-out body "
                f"{self.suite.held_out_body!r}, expected one task"
            )
        if unknown := sorted({base.size for base in self.bases.values()} - {self.bases["all"].size}):
            raise ValueError(f"budget {self.name}: bases are of sizes {unknown} too, expected one size")

    @property
    def held_out(self) -> str:
        """The held-out body's task on the subset."""
        return self.tasks("subset", "held-out")[0]

    def tasks(self, base: BaseName, group: TaskGroup) -> tuple[str, ...]:
        """The tasks of a group among those of a base recipe, in its order."""
        subset = self.bases["subset"].data.tasks
        belongs: Mapping[TaskGroup, Callable[[str], bool]] = {
            "all": lambda task: True,
            "subset": lambda task: task in subset,
            "low-data": lambda task: task in self.suite.low_data_group.tasks,
            "rest": lambda task: task not in self.suite.low_data_group.tasks,
            "held-out": lambda task: self.suite.tasks[task].body == self.suite.held_out_body,
        }
        return tuple(task for task in self.bases[base].data.tasks if belongs[group](task))

    def num_episodes(self, experiment: str) -> int:
        return self.fewer_episodes.get(experiment, self.episodes)

    def recipe(self, training: Training, seed: int) -> Recipe:
        """The exact recipe of a training, but for what it is fine-tuned from (`adapted_recipe`)."""
        base = self.bases[training.base]
        num_steps = base.stage2.schedule.num_steps + (self.added_steps if training.added_compute else 0)
        num_stage1_steps = 0 if training.prior == "none" else base.stage1.schedule.num_steps
        left_out = self.tasks(training.base, "held-out")
        others = tuple(task for task in base.data.tasks if task not in left_out)
        episodes = dict(base.data.episodes)
        if training.low_data_episodes is not None:
            low_data = self.tasks(training.base, "low-data")
            episodes |= dict.fromkeys(low_data, training.low_data_episodes)
        return replace(
            base,
            name=self._recipe_name(training, seed),
            seed=seed,
            data=replace(base.data, episodes=episodes),
            stage1=replace(
                base.stage1,
                schedule=replace(base.stage1.schedule, num_steps=num_stage1_steps),
                inputs="action" if training.prior == "action" else "state-action",
                tasks=others if training.left_out == "everything" and num_stage1_steps else (),
                motion_episodes=self.motion_episodes if training.more_motion else 0,
            ),
            stage2=replace(
                base.stage2,
                schedule=replace(base.stage2.schedule, num_steps=num_steps),
                decay_steps=_decay_steps(training, num_steps),
                history=training.history,
                tasks=others if training.left_out != "nowhere" else (),
                snapshots=base.stage2.snapshots if training.snapshots else (),
            ),
            evaluation=replace(base.evaluation, num_episodes=self.episodes, history=training.history),
        )

    def adapted_recipe(self, training: Training, seed: int, parent: Path) -> Recipe:
        """Fine-tuning `parent`, a checkpoint that never saw the held-out body, on demonstrations of it alone."""
        base = self.bases["adaptation"]
        return replace(
            base,
            name=self._recipe_name(training, seed),
            seed=seed,
            data=replace(base.data, tasks=(self.held_out,), episodes={self.held_out: training.adapted_episodes}),
            stage2=replace(base.stage2, start_from=str(parent)),
            evaluation=replace(base.evaluation, num_episodes=self.episodes),
        )

    def _recipe_name(self, training: Training, seed: int) -> str:
        words = [self.name, training.base, f"{training.prior}-prior"]
        words += ["history"] if training.history else []
        words += [f"left-out-of-{training.left_out.replace(' ', '-')}"] if training.left_out != "nowhere" else []
        words += [f"adapted-{training.adapted_episodes}"] if training.adapted_episodes else []
        return "-".join([*words, f"seed-{seed}"])

    @classmethod
    def load(cls, name_or_path: str) -> Budget:
        """A budget shipped in training/experiments/budgets by its name, or any JSON file by its path.

        Raises UnknownNameError, or ValueError that names an unknown or missing key.
        """
        return cls.from_json(shipped_json("budget", name_or_path, BUDGETS))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Budget:
        parts = dict(values)
        for name in ("bases", "step_costs"):
            if set(parts.get(name, ())) != {"all", "subset", "adaptation"}:
                raise ValueError(
                    f"budget.{name} has {sorted(parts.get(name, ()))}, expected all, subset and adaptation"
                )
        parts["suite"] = Suite.load(str(parts.get("suite", "")))
        parts["bases"] = {name: Recipe.from_json(recipe) for name, recipe in parts["bases"].items()}
        parts["step_costs"] = {
            name: build(StepCosts, costs, f"budget.step_costs.{name}") for name, costs in parts["step_costs"].items()
        }
        parts["control_costs"] = build(ControlCosts, parts.get("control_costs", {}), "budget.control_costs")
        parts["seeds"] = seeds_of_json(parts.get("seeds"))
        return build(cls, parts, "budget")


def seeds_of_json(values: Any) -> tuple[int, ...]:
    """Raises ValueError for what is no list."""
    if not isinstance(values, list):
        raise ValueError(f"budget.seeds is {values!r}, expected a list of numbers")
    return tuple(values)


def check_numbers(budget: str, seeds: Sequence[int], **counts: int) -> None:
    """Raises ValueError where no seed is named, one twice or one below 0, and for a count below 1."""
    if not seeds or len(set(seeds)) != len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ValueError(f"budget {budget}: seeds are {list(seeds)}, expected different whole numbers from 0 on")
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"budget {budget}: {name} is {count!r}, expected at least 1")


def _decay_steps(training: Training, num_steps: int) -> int | None:
    if training.prior == "none":
        return 0
    return None if training.decay is None else round(Fraction(num_steps) * training.decay)
