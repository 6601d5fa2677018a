"""Experiment `optimisation`: loss and norm of the gradient at the start of stage 2."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from training.experiments.definitions.shared import NO_PRIOR, STATE_PRIOR
from training.experiments.experiment import Arm, Experiment, Ratio

_LOGGED_STEPS = 500
_WHOLE_OBJECTIVE = (
    "The norm is of the whole objective's gradient: the landmark loss, which paper A does not have, is in it in "
    "every arm, and with distillation so are alignment and reconstruction."
)
_UNDISTILLED = replace(STATE_PRIOR, decay=Fraction(0))


def optimisation() -> Experiment:
    return Experiment(
        name="optimisation",
        title="Does training start better?",
        question="Prediction loss and gradient norm over the first 500 steps of stage 2.",
        arms=(
            Arm(name="no-prior", training=NO_PRIOR, until=_LOGGED_STEPS),
            Arm(name="state-prior", training=STATE_PRIOR, until=_LOGGED_STEPS),
            Arm(name="state-prior without distillation", training=_UNDISTILLED, until=_LOGGED_STEPS),
        ),
        ratios=(
            Ratio(
                claim="the prior lowers the prediction loss at the start",
                quantity="prediction",
                arm="state-prior",
                baseline="no-prior",
                paper_ratio=8.0,
            ),
            Ratio(
                claim="the prior lowers the gradient norm at the start",
                quantity="gradient_norm",
                arm="state-prior",
                baseline="no-prior",
                paper_ratio=16.0,
                note=_WHOLE_OBJECTIVE,
            ),
            Ratio(
                claim="the prior's weights alone lower the prediction loss at the start",
                quantity="prediction",
                arm="state-prior without distillation",
                baseline="no-prior",
            ),
            Ratio(
                claim="the prior's weights alone lower the gradient norm at the start",
                quantity="gradient_norm",
                arm="state-prior without distillation",
                baseline="no-prior",
                note=_WHOLE_OBJECTIVE,
            ),
            Ratio(
                claim="the prior lowers the gradient norm at the first step",
                quantity="gradient_norm",
                arm="state-prior",
                baseline="no-prior",
                steps=(1, 1),
                note=_WHOLE_OBJECTIVE,
            ),
            Ratio(
                claim="the prior's weights alone lower the gradient norm at the first step",
                quantity="gradient_norm",
                arm="state-prior without distillation",
                baseline="no-prior",
                steps=(1, 1),
                note=_WHOLE_OBJECTIVE,
            ),
        ),
        figure="losses",
        paper="Initial prediction loss about 8 times and gradient norm about 16 times lower with the prior.",
        notes=(
            "The gradient norm is that of the whole objective before clipping: with distillation it includes alignment "
            "and reconstruction, and in every arm the landmark loss. The third arm has the prior's weights and the "
            "objective of no-prior.",
            "These are the first steps of the runs that the other experiments test. Steps are counted from 1, whose "
            "loss is that before any update.",
        ),
    )
