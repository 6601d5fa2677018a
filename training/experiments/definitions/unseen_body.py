"""Experiment `unseen-body`: what transfers to a body that was left out."""

from __future__ import annotations

from dataclasses import replace

from training.experiments.definitions.shared import NO_PRIOR, STATE_PRIOR
from training.experiments.experiment import Arm, Comparison, Experiment

FEW = (0, 5, 10, 50)
_ZERO_BY_CONSTRUCTION = (
    "0 against 0 by construction, which says nothing of transfer: no training touched this body's own matrices, of "
    "which D's last one begins as zeros."
)


def unseen_body() -> Experiment:
    families = {
        "no prior": replace(NO_PRIOR, left_out="everything", snapshots=False),
        "prior without the body": replace(STATE_PRIOR, left_out="everything", snapshots=False),
        "prior with the body's motion": replace(STATE_PRIOR, left_out="stage 2", snapshots=False),
    }
    arms = [
        Arm(
            name=f"{family}, {count} demonstrations",
            training=replace(training, adapted_episodes=count),
            tasks="held-out",
            family=family,
            position=count,
        )
        for family, training in families.items()
        for count in FEW
    ]
    arms += [
        Arm(name="never left out, no prior", training=NO_PRIOR, tasks="held-out"),
        Arm(name="never left out, prior", training=STATE_PRIOR, tasks="held-out"),
    ]
    return Experiment(
        name="unseen-body",
        title="What transfers to a body that was left out?",
        question="One body left out of everything or of stage 2 only, then fine-tuning on 0 to 50 demonstrations.",
        arms=tuple(arms),
        comparisons=tuple(
            Comparison(
                claim=claim.format(count=count),
                arm=f"{arm}, {count} demonstrations",
                baseline=f"{baseline}, {count} demonstrations",
                tasks="held-out",
                note="" if count or baseline != "no prior" else _ZERO_BY_CONSTRUCTION,
            )
            for claim, arm, baseline in (
                ("the prior of other bodies helps at {count} demonstrations", "prior without the body", "no prior"),
                (
                    "having seen the body's motion helps at {count} demonstrations",
                    "prior with the body's motion",
                    "prior without the body",
                ),
            )
            for count in FEW
        ),
        figure="families",
        axis="demonstrations of the held-out body",
        paper="Not tested: every body of the paper is in its training data.",
        references=("never left out, no prior", "never left out, prior"),
        notes=(
            "A left-out body keeps its spec, its place in the model, its words and the statistics of its recordings; "
            "with 0 demonstrations it is played with weights that never saw it.",
            "Every body has its own matrices into and out of E and D and for its state. With 0 demonstrations those of "
            "a body that was left out of everything are as they were made.",
            "Adaptation neither distils nor reads E (decay_steps 0, no history): the prior acts by inherited weights "
            "alone.",
        ),
    )
