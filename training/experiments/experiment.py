"""What an experiment is, as frozen data: arms (a training, a way to test it), what is compared, and paper A's figures.

Owns the vocabulary and its checks. The eight experiments are definitions.py's; steps and episodes are a budget's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

BaseName = Literal["all", "subset", "adaptation"]
PriorKind = Literal["none", "action", "state-action"]
LeftOut = Literal["nowhere", "stage 2", "everything"]
TaskGroup = Literal["all", "subset", "low-data", "rest", "held-out"]
Checkpoint = Literal["first", "last"]
Direction = Literal["higher", "lower"]
Figure = Literal["curve", "arms", "families", "losses"]

DEFAULT_DECAY = Fraction(1, 10)
# Every test asks for this, whatever is the checkpoint's own number: 8, 4 and 2 steps solved the same 30 scenes of
# pick-place and of transfer-cube. With little noise the flow is straight.
EULER_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Training:
    """A recipe, as what it changes in a budget's base recipe.

    `decay` is N_decay as a share of stage 2's steps, None for never. `low_data_episodes` replaces the demonstrations of
    the low-data group. `left_out` says where the held-out body is missing; `adapted_episodes` then fine-tunes on that
    many demonstrations of it.
    """

    base: BaseName = "subset"
    prior: PriorKind = "state-action"
    history: bool = False
    decay: Fraction | None = DEFAULT_DECAY
    more_motion: bool = False
    added_compute: bool = False
    low_data_episodes: int | None = None
    left_out: LeftOut = "nowhere"
    adapted_episodes: int = 0
    snapshots: bool = False

    def __post_init__(self) -> None:
        if self.base == "adaptation":
            raise ValueError("base is 'adaptation', expected 'all' or 'subset': adapted_episodes asks for adaptation")
        if self.prior == "none" and (self.more_motion or self.decay != DEFAULT_DECAY):
            raise ValueError("a training without prior has neither more motion nor a decay of its own")
        if self.added_compute and self.prior != "none":
            raise ValueError("added_compute is the control of a prior, expected prior 'none'")
        if self.adapted_episodes and self.left_out == "nowhere":
            raise ValueError("adapted_episodes is for a body that was left out, and left_out is 'nowhere'")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How a checkpoint is tested: what it sees of its past, and how late its chunks come, in control steps."""

    history: bool = False
    history_mode: Literal["true", "shuffled", "frozen"] = "true"
    history_delay: int = 0
    inference_delay: int = 0

    def __post_init__(self) -> None:
        if not self.history and (self.history_mode != "true" or self.history_delay):
            raise ValueError("history_mode and history_delay change a history, and this condition has none")

    @property
    def name(self) -> str:
        words = ["history" if self.history else "no-history"]
        words += [self.history_mode] if self.history_mode != "true" else []
        words += [f"delayed-{self.history_delay}"] if self.history_delay else []
        words += [f"late-{self.inference_delay}"] if self.inference_delay else []
        return "-".join(words)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training under one condition on some tasks. `family` and `position` place it in a figure of lines.

    `until` stops training early and tests nothing: only the log is wanted. `paper` holds paper A's percentages.
    """

    name: str
    training: Training
    condition: Condition = Condition()
    tasks: TaskGroup = "all"
    until: int | None = None
    family: str = ""
    position: float | None = None
    paper: Mapping[TaskGroup, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim on success: `arm` is `expected` than `baseline`, seeds and scenes paired.

    `than` are two further arms: the claim is then on the difference of both differences. `paper_points` is paper A's
    difference in percentage points. `where_less_compute` is what is claimed instead where the baseline's training
    turned out to compute clearly less than the arm's; its {share} is how much of it. `note` is what a reader of the
    claim alone would miss.
    """

    claim: str
    arm: str
    baseline: str
    than: tuple[str, str] | None = None
    tasks: TaskGroup = "all"
    checkpoint: Checkpoint = "last"
    expected: Direction = "higher"
    paper_points: float | None = None
    where_less_compute: str = ""
    note: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.baseline, *(self.than or ()))


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A claim on a logged quantity: `baseline` has more of it than `arm` over some steps, by the paper's factor.

    `steps` are the first and the last of them, counted from 1: the loss of step 1 is that before any update. `note` is
    what a reader of the claim alone would miss.
    """

    claim: str
    quantity: Literal["prediction", "gradient_norm"]
    arm: str
    baseline: str
    steps: tuple[int, int] = (1, 100)
    paper_ratio: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms and what is claimed of them. `goal` is a share of success that its best arm is to reach over all tasks.

    `references` are arms that lack nothing of what the others lack: where these hardly succeed, nothing can be told.
    """

    name: str
    title: str
    question: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    figure: Figure
    axis: str = ""  # what the positions of its families are
    paper: str  # what paper A says of it, in a sentence or two
    notes: tuple[str, ...] = ()  # what a reader must know of how it was done
    goal: float | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"experiment {self.name}: arms are {names}, expected different names")
        for comparison in (*self.comparisons, *self.ratios):
            asked = comparison.arms if isinstance(comparison, Comparison) else (comparison.arm, comparison.baseline)
            if unknown := sorted(set(asked) - set(names)):
                raise ValueError(
                    f"experiment {self.name}: {comparison.claim!r} compares {unknown}, expected some of {names}"
                )
        if unknown := sorted(set(self.references) - set(names)):
            raise ValueError(f"experiment {self.name}: references are {unknown}, expected some of {names}")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)
