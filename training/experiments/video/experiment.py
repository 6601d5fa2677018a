"""What an experiment on video is, as frozen data: arms, the figures that claims are about, and paper B's figures.

Owns the vocabulary and its checks. The four experiments are definitions.py's; steps, clips and episodes are a budget's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from training.experiments.experiment import Direction

if TYPE_CHECKING:  # they import torch, which an experiment's name must not wait for
    from training.latent_actions.settings import Masks
    from training.video_prior.joint_recipe import AlignmentLoss

PolicyFigure = Literal["families", "arms"]
# What turns an observation into actions: paper B's, which reads intent and eyes, or paper A's, which reads one latent.
Head = Literal["intent", "motion"]


@dataclass(frozen=True, kw_only=True)
class CodesTraining:
    """Eyes and latent actions on the training clips; `num_codes` 0 leaves the latents continuous.

    `latent_dim` is the width of a latent, the budget's where it is None. `paper_loss` leaves out of the budget's
    settings all that paper B's loss has not, `no_motion_loss` the motion that action codes must give and nothing else.
    With `hands_only` robots' clips are seen by the eyes alone, picture by picture: the codes never saw one move.
    """

    masks: Masks = "flow"
    num_codes: int = 16
    latent_dim: int | None = None
    paper_loss: bool = False
    no_motion_loss: bool = False
    hands_only: bool = False

    def __post_init__(self) -> None:
        if self.no_motion_loss and (self.paper_loss or self.masks == "none"):
            raise ValueError("no_motion_loss needs masks and our loss: the others have no motion loss to leave out")


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """A policy on `demonstrations` of each task, as what it changes in the budget's recipe.

    `pretraining` on the clips' codes comes before, `learns_codes` of the robots' own frames beside the actions.
    `added_compute` spends on more steps of stage 2 what pretraining would have taken. `hands_only` takes codes and
    pretraining from the clips of hands. With `untrained_eyes` the frozen eyes are what their seed makes of them: no
    clip taught them. In `sight_dropout` of the training the head does not see what they see. `state_prior` starts the
    decoder from paper A's stage 1; with the `head` "motion", which is paper A's, that is its policy. `joint` lets this
    one see clips, aligned so.
    """

    demonstrations: int
    pretraining: bool = False
    learns_codes: bool = False
    added_compute: bool = False
    use_intent: bool = True
    use_eyes: bool = True
    untrained_eyes: bool = False
    sight_dropout: float = 0.0
    frozen: bool = False
    hands_only: bool = False
    state_prior: bool = False
    head: Head = "intent"
    joint: AlignmentLoss | None = None

    def __post_init__(self) -> None:
        if self.joint is not None and not (self.head == "motion" and self.state_prior):
            raise ValueError("joint is of the head 'motion' and starts from state_prior")
        if self.head == "motion" and (self.pretraining or self.learns_codes or not (self.use_intent and self.use_eyes)):
            raise ValueError("the head 'motion' learns no codes and reads neither intent nor eyes")
        if self.untrained_eyes and (
            self.head == "motion" or not self.use_eyes or self.pretraining or self.learns_codes
        ):
            raise ValueError("untrained_eyes are of a head that reads eyes and of no codes: these need trained ones")
        if self.added_compute and self.pretraining:
            raise ValueError("added_compute is in the place of pretraining")
        if self.hands_only and not self.pretraining:
            raise ValueError("hands_only is of pretraining: without it no clip teaches any motion")
        if self.frozen and (self.learns_codes or not self.pretraining):
            raise ValueError("frozen needs pretraining and learns no codes: nothing of it would move")


@dataclass(frozen=True, kw_only=True)
class ProbedArm:
    """Latent actions that are probed. `paper` holds paper B's figures by the names that claims use."""

    name: str
    training: CodesTraining
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PolicyArm:
    """A policy that is tested in closed loop. `family` and `position` place it in a figure of lines."""

    name: str
    training: PolicyTraining
    family: str = ""
    position: float | None = None


@dataclass(frozen=True, kw_only=True)
class Term:
    """One figure of one arm (figures.FIGURES)."""

    arm: str
    figure: str


@dataclass(frozen=True, kw_only=True)
class FigureClaim:
    """`first`, or `first` less `second`, is `expected` than `than`; both resampled over the same seeds and clips.

    `paper` is what paper B has in its place.
    """

    claim: str
    first: Term
    second: Term | None = None
    than: float = 0.0
    expected: Direction = "higher"
    paper: float | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True, kw_only=True)
class PolicyClaim:
    """`arm` solves more than `baseline`, seeds and scenes paired. `than` are two further arms: the claim is then on the
    difference of both differences. `paper_points` is paper B's difference in percentage points. Policies of different
    heads are compared where the claim is `about_heads` alone.
    """

    claim: str
    arm: str
    baseline: str
    than: tuple[str, str] | None = None
    expected: Direction = "higher"
    paper_points: float | None = None
    about_heads: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.baseline, *(self.than or ()))


@dataclass(frozen=True, kw_only=True)
class ProbeExperiment:
    """`shown` are the figures of its table, in order; `drawn` those of its plot."""

    name: str
    title: str
    question: str
    arms: tuple[ProbedArm, ...]
    claims: tuple[FigureClaim, ...]
    shown: tuple[str, ...]
    drawn: tuple[str, ...]
    paper: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = _different_names(self.name, [arm.name for arm in self.arms])
        _check_claims(self.name, {each.claim: [term.arm for term in each.terms] for each in self.claims}, names)


@dataclass(frozen=True, kw_only=True)
class PolicyExperiment:
    name: str
    title: str
    question: str
    arms: tuple[PolicyArm, ...]
    claims: tuple[PolicyClaim, ...]
    figure: PolicyFigure
    axis: str = ""  # what the positions of its families are
    paper: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = _different_names(self.name, [arm.name for arm in self.arms])
        _check_claims(self.name, {each.claim: list(each.arms) for each in self.claims}, names)
        heads = {arm.name: arm.training.head for arm in self.arms}
        for claim in self.claims:
            pairs = ((claim.arm, claim.baseline), *((claim.than,) if claim.than else ()))
            if claim.about_heads != any(heads[arm] != heads[baseline] for arm, baseline in pairs):
                raise ValueError(
                    f"experiment {self.name}: {claim.claim!r} has about_heads {claim.about_heads} and compares "
                    f"{' with '.join(heads[arm] for arm in claim.arms)}"
                )


VideoExperiment = ProbeExperiment | PolicyExperiment


def _different_names(experiment: str, names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError(f"experiment {experiment}: arms are {names}, expected different names")
    return names


def _check_claims(experiment: str, asked: Mapping[str, list[str]], names: list[str]) -> None:
    for claim, arms in asked.items():
        if unknown := sorted(set(arms) - set(names)):
            raise ValueError(f"experiment {experiment}: {claim!r} compares {unknown}, expected some of {names}")
