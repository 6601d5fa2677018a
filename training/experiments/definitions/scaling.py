"""Experiment `scaling`: four times the motion for stage 1."""

from __future__ import annotations

from dataclasses import replace

from training.experiments.definitions.shared import NO_PRIOR, SIMULATED_ALONE, STATE_PRIOR
from training.experiments.experiment import Arm, Comparison, Experiment


def scaling() -> Experiment:
    return Experiment(
        name="scaling",
        title="Does more motion without images make a better policy?",
        question="Stage 1 on once and four times the demonstrations, the added ones without images; one stage 2.",
        arms=(
            Arm(name="no-prior", training=NO_PRIOR, paper={"all": 64.6}),
            Arm(name="motion x1", training=STATE_PRIOR, paper={"all": 68.3}),
            Arm(name="motion x4", training=replace(STATE_PRIOR, more_motion=True), paper={"all": 68.8}),
        ),
        comparisons=(
            Comparison(
                claim="four times the motion raises final success",
                arm="motion x4",
                baseline="motion x1",
                paper_points=0.5,
                note=SIMULATED_ALONE,
            ),
            Comparison(
                claim="four times the motion is ahead at the first checkpoint",
                arm="motion x4",
                baseline="motion x1",
                checkpoint="first",
                paper_points=3.2,
                note=SIMULATED_ALONE,
            ),
            Comparison(
                claim="four times the motion raises success of the low-data group",
                arm="motion x4",
                baseline="motion x1",
                tasks="low-data",
            ),
            Comparison(
                claim="four times the motion beats no prior at the first checkpoint",
                arm="motion x4",
                baseline="no-prior",
                checkpoint="first",
                paper_points=14.2,
                note=SIMULATED_ALONE,
            ),
        ),
        figure="curve",
        paper=(
            "At 5k steps 21.2 without prior, 32.2 with 565k and 35.4 with 2.3M transitions in stage 1; at the end "
            "64.6, 68.3 and 68.8. By all signs these are means over its nine simulated units, not over its 13 tasks."
        ),
        notes=(
            "Four times in all: every task gets equally many episodes more, so the low-data group gains most. Stage 1 "
            "takes equally many steps in both.",
        ),
    )
