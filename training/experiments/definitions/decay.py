"""Experiment `decay`: how long distillation lasts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from training.experiments.definitions.shared import STATE_PRIOR
from training.experiments.experiment import Arm, Comparison, Experiment


def decay() -> Experiment:
    names = {"0": Fraction(0), "1/50": Fraction(1, 50), "1/10": Fraction(1, 10), "never": None}
    return Experiment(
        name="decay",
        title="Why must distillation end?",
        question="N_decay of 0, 1/50 and 1/10 of stage 2's steps, and lambda that never decays.",
        arms=tuple(
            Arm(name=f"N_decay {name}", training=replace(STATE_PRIOR, decay=decay)) for name, decay in names.items()
        ),
        comparisons=(
            Comparison(claim="distillation helps", arm="N_decay 1/10", baseline="N_decay 0"),
            Comparison(claim="distilling for longer helps", arm="N_decay 1/10", baseline="N_decay 1/50"),
            Comparison(claim="distillation should end", arm="N_decay 1/10", baseline="N_decay never"),
        ),
        figure="arms",
        paper="N_decay is 5k of 50k steps (1/10). We found no numbers for its remark that distilling too long hurts.",
        notes=(
            "N_decay 0 starts from the prior's weights and never distils.",
            "Arms take equally many steps, not equal compute: one that distils costs about 1.4 of one that does not "
            "(the table of compute has what was measured), so the longer an arm distils the more it computes.",
        ),
    )
