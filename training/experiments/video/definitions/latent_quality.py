"""Does the action code follow motion and ignore the background?"""

from __future__ import annotations

from training.experiments.video.definitions.shared import (
    CODES_NOTE,
    MASKS_NOTE,
    PAPERS_LOSS,
    PAPERS_LOSS_NOTE,
    PAPERS_UNMASKED,
    UNSEEN_NOTE,
)
from training.experiments.video.experiment import CodesTraining, FigureClaim, ProbedArm, ProbeExperiment, Term

_WIDE_LATENT = 8
_FLOW, _NO_MASKS, _TRUTH = "flow masks, 16 codes", "no masks, 16 codes", "true masks, 16 codes"
_NO_MOTION = "flow masks, no motion loss"
_MANY_CODES, _CONTINUOUS = "flow masks, 64 codes", "flow masks, continuous"
_TRUTH_NOTE = (
    "With true masks all that is made of masks is made of the simulator's, also the flow inside them; flow itself is "
    "of the pictures."
)
_WIDTH_NOTE = (
    f"16 codes have latents of 2 numbers, a circle, which they cover; 64 codes and continuous latents have "
    f"{_WIDE_LATENT}, for on a circle they would be held to what 16 codes can say. These arms differ in width as well "
    "as in codes, and the continuous one in what is read; action latents are read of every arm, before they are "
    "quantised."
)


def latent_quality() -> ProbeExperiment:
    return ProbeExperiment(
        name="latent-quality",
        title="Does the action code follow motion and ignore the background?",
        question="Latent actions with masks from nothing, flow or the simulator, and with 16, 64 or no codes.",
        arms=(
            ProbedArm(name=_NO_MASKS, training=CodesTraining(masks="none")),
            ProbedArm(name=_FLOW, training=CodesTraining()),
            ProbedArm(name=_NO_MOTION, training=CodesTraining(no_motion_loss=True)),
            ProbedArm(name=_TRUTH, training=CodesTraining(masks="truth")),
            ProbedArm(name=_MANY_CODES, training=CodesTraining(num_codes=64, latent_dim=_WIDE_LATENT)),
            ProbedArm(name=_CONTINUOUS, training=CodesTraining(num_codes=0, latent_dim=_WIDE_LATENT)),
            ProbedArm(name=PAPERS_LOSS, training=CodesTraining(paper_loss=True)),
            ProbedArm(name=PAPERS_UNMASKED, training=CodesTraining(masks="none", paper_loss=True)),
        ),
        claims=(
            FigureClaim(
                claim="flow masks and the losses made of them make the action code follow the hand",
                first=Term(arm=_FLOW, figure="effector, action"),
                second=Term(arm=_NO_MASKS, figure="effector, action"),
            ),
            FigureClaim(
                claim="with the paper's loss alone, flow masks make the action code follow the hand",
                first=Term(arm=PAPERS_LOSS, figure="effector, action"),
                second=Term(arm=PAPERS_UNMASKED, figure="effector, action"),
            ),
            FigureClaim(
                claim="the action code tells the hand's motion by 0.5 of R2 better than the background code",
                first=Term(arm=_FLOW, figure="effector, action"),
                second=Term(arm=_FLOW, figure="effector, background"),
                than=0.5,
            ),
            FigureClaim(
                claim="without masks, too, by 0.5 of R2 better than the background code",
                first=Term(arm=_NO_MASKS, figure="effector, action"),
                second=Term(arm=_NO_MASKS, figure="effector, background"),
                than=0.5,
            ),
            FigureClaim(
                claim="with the paper's loss alone, too, by 0.5 of R2 better than the background code",
                first=Term(arm=PAPERS_LOSS, figure="effector, action"),
                second=Term(arm=PAPERS_LOSS, figure="effector, background"),
                than=0.5,
            ),
            FigureClaim(
                claim="what we add to the paper's loss makes the action code follow the hand",
                first=Term(arm=_FLOW, figure="effector, action"),
                second=Term(arm=PAPERS_LOSS, figure="effector, action"),
            ),
            FigureClaim(
                claim="the motion loss makes the action code follow the hand",
                first=Term(arm=_FLOW, figure="effector, action"),
                second=Term(arm=_NO_MOTION, figure="effector, action"),
            ),
            FigureClaim(
                claim="of the hand's motion that its place does not tell, the action code tells more than the "
                "background code",
                first=Term(arm=_FLOW, figure="effector given place, action"),
                second=Term(arm=_FLOW, figure="effector given place, background"),
            ),
            FigureClaim(
                claim="flow masks cover 0.6 of what moves, as IoU with the simulator's, the camera moving",
                first=Term(arm=_FLOW, figure="mask IoU"),
                than=0.6,
            ),
            FigureClaim(
                claim="the background code tells the camera's motion better than the action code",
                first=Term(arm=_FLOW, figure="scenery, background"),
                second=Term(arm=_FLOW, figure="scenery, action"),
            ),
            FigureClaim(
                claim="flow masks and the losses made of them keep the camera's motion out of the action code",
                first=Term(arm=_FLOW, figure="scenery, action"),
                second=Term(arm=_NO_MASKS, figure="scenery, action"),
                expected="lower",
            ),
            FigureClaim(
                claim="true masks are better than flow's",
                first=Term(arm=_TRUTH, figure="effector, action"),
                second=Term(arm=_FLOW, figure="effector, action"),
            ),
            FigureClaim(
                claim=f"64 codes of {_WIDE_LATENT} numbers follow the hand better than 16 of 2",
                first=Term(arm=_MANY_CODES, figure="effector, action"),
                second=Term(arm=_FLOW, figure="effector, action"),
            ),
            FigureClaim(
                claim=f"continuous latents of {_WIDE_LATENT} numbers, read as they are, follow the hand better than 16 "
                "codes of 2, read as one-hot",
                first=Term(arm=_CONTINUOUS, figure="effector, action"),
                second=Term(arm=_FLOW, figure="effector, action"),
            ),
            FigureClaim(
                claim="at least three quarters of 16 codes are used", first=Term(arm=_FLOW, figure="usage"), than=0.75
            ),
            FigureClaim(
                claim="a hand's codes move a robot: less error than with the codes of any motion",
                first=Term(arm=_FLOW, figure="transferred codes"),
                second=Term(arm=_FLOW, figure="shuffled codes"),
                expected="lower",
            ),
            FigureClaim(
                claim="a hand's codes are better than changing nothing",
                first=Term(arm=_FLOW, figure="transferred codes"),
                than=1.0,
                expected="lower",
            ),
            FigureClaim(
                claim="a hand's codes are better than none",
                first=Term(arm=_FLOW, figure="transferred codes"),
                second=Term(arm=_FLOW, figure="no codes"),
                expected="lower",
            ),
        ),
        shown=(
            "effector, action",
            "effector, background",
            "effector, action latents",
            "effector, place",
            "effector given place, action",
            "effector given place, background",
            "effector place, action",
            "effector place, background",
            "effector in scene, action",
            "effector in scene, background",
            "scenery, action",
            "scenery, background",
            "usage",
            "background usage",
            "perplexity",
            "own codes",
            "transferred codes",
            "shuffled codes",
            "no codes",
            "mask IoU",
            "mask IoU, robots",
        ),
        drawn=("effector, action", "effector, background", "scenery, action", "scenery, background"),
        paper="Not measured: paper B shows codes of three motions, and varies neither masks nor the number of codes.",
        notes=(
            CODES_NOTE,
            UNSEEN_NOTE,
            "A read-out is a ridge regression held out by clip, from one-hot codes, or from the latents of the arm "
            "without codes; what moved is half a picture's side. Effector in scene is its motion less the scenery's.",
            "Where a hand is tells some of how it moved: effector from its last place alone, of clips and the same for "
            "every arm. Effector given place is its motion without what a ridge regression on that place tells, held "
            "out by clip.",
            "An error is of a robot's last frame's features, weighed by how far each changed, over the error of "
            "changing nothing, which is 1, and the mean of two robots. A hand's codes are those of the pair of frames "
            "whose effector moved most alike in the picture, any codes those of any pair of hands.",
            "Read-outs and the use of codes are of hands alone, and codes are carried from hands to robots alone.",
            "The read-out asks for at least 0.5 and usage for at least three quarters: these claims hold when the "
            "interval excludes less. A code is used that has a tenth of an equal share or more. Resampled clips tend "
            "to use fewer codes, so usage is bounded from below alone; perplexity stands beside it.",
            MASKS_NOTE,
            _TRUTH_NOTE,
            _WIDTH_NOTE,
            PAPERS_LOSS_NOTE,
            "IoU is of the test clips' flow masks with the simulator's segmentation of hand and what it moves, over "
            "the frames in which it moves: a figure of clips, the same for every arm and seed.",
        ),
    )
