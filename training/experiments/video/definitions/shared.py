"""What the experiments on priors from video share: arms that several have, and what their reports say alike."""

from __future__ import annotations

DEMONSTRATIONS = (10, 50)
FEW = DEMONSTRATIONS[0]
CONTROL = "no pretraining"
PAPERS_LOSS, PAPERS_UNMASKED = "paper's loss, flow masks", "paper's loss, no masks"

CODES_NOTE = (
    "Clips are simulated hands under a moving camera and robots whose actions are hidden, on tasks and scenes that no "
    "policy is tested on; figures are of clips that no training saw. Every seed trains its own eyes and codes. A "
    "robot's own codes, which policies learn, span its chunk, 0.8 of the gap of the clips' codes."
)
UNSEEN_NOTE = (
    "Our losses were developed on 60 clips of testing seeds (docs/methods.md). Hands' test clips here begin 1,000 "
    "seeds further on, and none of those 60 is among them."
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
    "Tasks are assembly, of the suite's low-data group (pick-place, drawer-open, assembly), and lift, which is not of "
    "it. Robots' clips show pick-place. Drawer-open was to be here: in a first pilot, one seed and its two tasks "
    "alone, the control solved it in 100 and 100 % with 10 and 50 demonstrations after 480 steps and in 96 and 86 % "
    "after 240, where nothing could be shown, and paper A's head in 32 and 36 % after 480. In a second pilot, one "
    "seed, the control solved assembly in 42 and 48 % and lift in 42 and 44 % after 360 steps, which is what is run "
    "here. Where an arm solves below 15 or above 85 % of a task hardly any other can be told from it there."
)
LANDMARKS_NOTE = (
    "No arm learns where objects are (landmark_weight 0), as the project's other policies do in simulation: those "
    "labels teach the eyes what video is to teach them, and a frozen model and one without intent could not have the "
    "loss. Policies here are weaker for it, all alike."
)
SHIFT_NOTE = "Pictures are shifted by up to 4 pixels in pretraining and, in every arm, in stage 2 (image_shift)."
RESOLUTION_NOTE = (
    "Clips have 64 pixels a side and are enlarged to the model's 96, robots' pictures are reduced to these from 128: "
    "pretraining sees blurred pictures, adaptation sharp ones."
)
STEPS_NOTE = (
    "360 steps draw 5,760 frames of a task: all of 50 demonstrations once (assembly) or twice (lift), of 10 five or "
    "eleven times. Policies here are short of steps before they are short of demonstrations."
)
INTENT_NOTE = (
    "Where a head has eyes it hardly reads intent: with another frame's intent its chunks are as good, by the verb "
    "inspect (docs/methods.md). What pretraining gives intent can then not show, whatever it is worth. Nor do the two "
    "tasks need words: each is another body's, which alone says what is to be done."
)
SAMPLE_NOTE = (
    "All seeds of training share the demonstrations, the first 10 or 50 of each task, and the clips: intervals leave "
    "out what other demonstrations or clips would change."
)


def at(family: str, demonstrations: int) -> str:
    return f"{family}, {demonstrations} demonstrations"
