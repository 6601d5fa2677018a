"""Experiment `copycat`: whether a policy depends on its history, and on chunks that are in time."""

from __future__ import annotations

from dataclasses import replace

from training.experiments.definitions.shared import BOTH_PASSES, JOINT, JOINT_HISTORY, NOT_HISTORY_ALONE, WITH_HISTORY
from training.experiments.experiment import Arm, Comparison, Condition, Experiment

HISTORY_DELAY = 4
INFERENCE_DELAYS = (1, 2, 3, 4, 5)
_REFERENCE_DELAYS = (1, 3, 5)


def copycat() -> Experiment:
    changed = {
        "shuffled history": Condition(history=True, history_mode="shuffled"),
        "frozen history": Condition(history=True, history_mode="frozen"),
        "delayed history": Condition(history=True, history_delay=HISTORY_DELAY),
        "history withheld": Condition(),
    }
    late = [
        Arm(
            name=f"{family}, {delay} steps late",
            training=training,
            condition=replace(condition, inference_delay=delay),
            tasks="subset",
            family=family,
            position=delay,
        )
        for family, training, condition, delays in (
            ("history", JOINT_HISTORY, WITH_HISTORY, INFERENCE_DELAYS),
            ("state-prior", JOINT, Condition(), _REFERENCE_DELAYS),
        )
        for delay in delays
    ]
    return Experiment(
        name="copycat",
        title="Does the policy depend on its history?",
        question="The history policy with its history shuffled, frozen, delayed or withheld, and with late chunks.",
        arms=(
            Arm(
                name="history",
                training=JOINT_HISTORY,
                condition=WITH_HISTORY,
                tasks="subset",
                family="history",
                position=0,
            ),
            Arm(name="state-prior", training=JOINT, tasks="subset", family="state-prior", position=0),
            *(
                Arm(name=name, training=JOINT_HISTORY, condition=condition, tasks="subset")
                for name, condition in changed.items()
            ),
            *late,
        ),
        comparisons=(
            *(
                Comparison(
                    claim=f"{name} lowers success: the policy depends on its history",
                    arm=name,
                    baseline="history",
                    tasks="subset",
                    expected="lower",
                )
                for name in changed
            ),
            *(
                Comparison(
                    claim=f"{name} is worse than none, as where history is copied",
                    arm=name,
                    baseline="history withheld",
                    tasks="subset",
                    expected="lower",
                )
                for name in ("shuffled history", "frozen history")
            ),
            Comparison(
                claim="training with history helps where none is given in the test",
                arm="history withheld",
                baseline="state-prior",
                tasks="subset",
                note="Both see no history. What differs is training: two draws of every chunk instead of one, and more "
                "compute.",
            ),
            *(
                Comparison(
                    claim=f"chunks {delay} steps late lower success",
                    arm=f"history, {delay} steps late",
                    baseline="history",
                    tasks="subset",
                    expected="lower",
                )
                for delay in INFERENCE_DELAYS
            ),
            *(
                Comparison(
                    claim=f"history helps with chunks {delay} steps late",
                    arm=f"history, {delay} steps late",
                    baseline=f"state-prior, {delay} steps late",
                    tasks="subset",
                    note=NOT_HISTORY_ALONE,
                )
                for delay in _REFERENCE_DELAYS
            ),
        ),
        figure="families",
        axis="inference delay, control steps",
        paper="Tested in distribution only: +3.1 points with history, no corrupted history and no delay.",
        notes=(
            f"Delayed history ends {HISTORY_DELAY} control steps before the present. The checkpoints are those of the "
            "experiment prior.",
            "That a changed history lowers success shows that the policy depends on its history, not what it makes of "
            "it. Copying would show as a corrupted history, shuffled or frozen, that is worse than none, which the "
            "policy knows from half of its training: it follows what it is told that it did.",
            BOTH_PASSES,
        ),
    )
