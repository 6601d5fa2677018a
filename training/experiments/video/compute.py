"""What pretraining took, and the steps that its control has in its place: measured, by the logs of the trainings.

Owns where these logs lie and what a claim about compute says of them. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.experiments.compute import logged_step_s, read_log
from training.experiments.store import read_json
from training.experiments.video.experiment import PolicyClaim, PolicyExperiment, PolicyTraining
from training.experiments.video.store import PolicyRun, VideoStore

PRETRAINING, STAGE_2 = "pretraining", "stage 2"
Values = Mapping[str, Any]


def step_seconds(run: PolicyRun, store: VideoStore) -> Mapping[str, float]:
    """What a step of a policy's pretraining and of its stage 2 usually took, by their logs, or as told.

    What it has not, or no log tells, is missing.
    """
    if store.is_told(run.key):
        return (store.outcome(run.key) or {}).get("step_s", {})
    adaptation = store.prior_run(run.recipe, run.digest).adaptation
    directories = {STAGE_2: adaptation}
    started_from = (read_json(adaptation / "run.json") or {}).get("starts_from", {})
    if PRETRAINING in started_from:
        directories[PRETRAINING] = store.parts / started_from[PRETRAINING]
    found = {phase: logged_step_s(read_log(directory)) for phase, directory in directories.items()}
    return {phase: step_s for phase, step_s in found.items() if step_s is not None}


def compute_of(
    claim: PolicyClaim, experiment: PolicyExperiment, store: VideoStore, seeds: Sequence[int]
) -> dict[str, Any] | None:
    """The steps of the arm's pretraining and those that its baseline has more; None for a baseline with none."""
    trainings = {arm.name: arm.training for arm in experiment.arms}
    if not trainings[claim.baseline].added_compute:
        return None

    def took(training: PolicyTraining, phase: str, num_steps: int) -> dict[str, Any]:
        each = [step_seconds(store.policy_run(training, seed), store).get(phase) for seed in seeds]
        # The least, for the machine had other work as well.
        step_s = min((seconds for seconds in each if seconds is not None), default=None)
        if step_s is None:
            return {"steps": num_steps, "step_s": None, "seconds": None}
        return {"steps": num_steps, "step_s": round(step_s, 4), "seconds": round(num_steps * step_s, 1)}

    num_pretraining_steps = store.budget.recipe.pretraining.schedule.num_steps
    return {
        "pretraining": took(trainings[claim.arm], PRETRAINING, num_pretraining_steps),
        "added": took(trainings[claim.baseline], STAGE_2, store.budget.added_steps),
    }


def measured_lines(claims: Sequence[Values]) -> list[str]:
    """What results.json says of the compute that claims are about."""
    return [
        f"Measured: pretraining takes {_seconds(compute['pretraining'])}, what {claim['baseline']}, has more of "
        f"stage 2 takes {_seconds(compute['added'])}."
        for claim in claims
        if (compute := claim.get("compute"))
    ]


def _seconds(part: Values) -> str:
    if part["seconds"] is None:
        return f"unknown seconds ({part['steps']} steps, no log of them is here)"
    return f"{part['seconds']:.0f} s ({part['steps']} steps of {part['step_s']:.3f} s)"
