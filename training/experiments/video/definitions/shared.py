"""What the experiments on priors from video share: arms that several have, and what their reports say alike."""

from __future__ import annotations

DEMONSTRATIONS = (10, 50)
FEW = DEMONSTRATIONS[0]
CONTROL = "no pretraining"
PAPERS_LOSS, PAPERS_UNMASKED = "paper's loss, flow masks", "paper's loss, no masks"

CODES_NOTE = (
    "Clips are simulated hands under a moving camera and robots whose actions are hidden, on tasks and scenes that no "
    "policy is tested on; figures are of clips that no training saw. Every seed trains its own eyes and codes."
)
PAPERS_LOSS_NOTE = (
    "Paper's loss is the released code's and nothing else: the last frame's mask, an action path that may show what it "
    "likes outside the foreground, no motion and no masks to be told, codes from the first step, pairs as they are. "
    "Eyes, widths and steps are those of every arm."
)
MASKS_NOTE = (
    "Without masks the losses made of them are away as well: what holds outside the foreground, how far what moves "
    "got, where it is. With the paper's loss, with masks and without, nothing but the masked errors is made of them."
)
TASKS_NOTE = (
    "Tasks are two that the no-prior arm of paper A's experiments, with as many samples of each and a landmark loss, "
    "solves neither hardly ever nor nearly always: drawer-open, 42 and 46 % with 10 demonstrations by seed "
    "(results/low-data), and lift, 26 and 44 % with 50 (results/prior-kind). Pick-place, 0 %, and assembly, 2 and 18 % "
    "after half as many samples again (results/prior), are left out. Of this head without landmarks nothing is known: "
    "`python -m training experiment video-pilot` tests its control of one seed first, and where that solves below 15 "
    "or above 85 % of a task no arm can be told from another there."
)
LANDMARKS_NOTE = (
    "No arm learns where objects are (landmark_weight 0), as the project's other policies do in simulation: those "
    "labels teach the eyes what video is to teach them, and a frozen model and one without intent could not have the "
    "loss. Policies here are weaker for it, all alike."
)
SHIFT_NOTE = "Pictures are shifted by up to 4 pixels in pretraining and, in every arm, in stage 2 (image_shift)."


def at(family: str, demonstrations: int) -> str:
    return f"{family}, {demonstrations} demonstrations"
