"""What several experiments share: trainings, and what must be said beside a claim.

Arms that are the same training under two names are trained once.
"""

from __future__ import annotations

from dataclasses import replace

from training.experiments.experiment import Condition, Training

NO_PRIOR = Training(prior="none", snapshots=True)
STATE_PRIOR = Training(snapshots=True)
JOINT = replace(STATE_PRIOR, base="all")
JOINT_HISTORY = replace(JOINT, history=True)
WITH_HISTORY = Condition(history=True)

BOTH_PASSES = (
    "With history every sample is trained with it and without (history_pass both, paper A's way), each pass with its "
    "own draw of noise and time: the decoder has two draws of every chunk where the other arms have one, and training "
    "computes 1.34 times what state-prior's does (budget cpu; the table of compute has what was measured). What the "
    "policy with history has ahead of state-prior is history, draws and compute together: in copycat, history withheld "
    "has the last two without the first. The shipped policy's recipe, cross13-history, draws one of the two passes for "
    "each sample (sampled): the same loss in expectation, for less."
)
NOT_HISTORY_ALONE = (
    "History is not all that differs: its arm has two draws of every chunk where the baseline has one, and more "
    "compute. Copycat has the same policy with its history withheld."
)
SIMULATED_ALONE = (
    "Paper A's figure is, by all signs, a mean over its simulated tasks alone: nine units, as we count them, and none "
    "of the real robot's."
)
