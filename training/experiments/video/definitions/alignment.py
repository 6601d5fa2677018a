"""Do hands and robots have the same latent actions?"""

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
from training.latent_actions.readout import NUM_BODY_DIRECTIONS

_OURS, _UNMASKED = "ours (flow masks)", "no masks"


def alignment() -> ProbeExperiment:
    return ProbeExperiment(
        name="alignment",
        title="Do hands and robots have the same latent actions?",
        question="Linear CKA of a hand's and two robots' latents of equal motion, with the body subspace and without.",
        arms=(
            ProbedArm(name=_UNMASKED, training=CodesTraining(masks="none")),
            ProbedArm(name=_OURS, training=CodesTraining()),
            ProbedArm(name=PAPERS_LOSS, training=CodesTraining(paper_loss=True), paper={"CKA without body": 0.914}),
            ProbedArm(name=PAPERS_UNMASKED, training=CodesTraining(masks="none", paper_loss=True)),
        ),
        claims=(
            FigureClaim(
                claim="masks and the losses made of them align bodies, the body subspace removed",
                first=Term(arm=_OURS, figure="CKA without body"),
                second=Term(arm=_UNMASKED, figure="CKA without body"),
            ),
            FigureClaim(
                claim="with the paper's loss alone, masks align bodies, their subspace removed",
                first=Term(arm=PAPERS_LOSS, figure="CKA without body"),
                second=Term(arm=PAPERS_UNMASKED, figure="CKA without body"),
            ),
            FigureClaim(
                claim="masks and the losses made of them align bodies as they are",
                first=Term(arm=_OURS, figure="CKA"),
                second=Term(arm=_UNMASKED, figure="CKA"),
            ),
            FigureClaim(
                claim="removing the body subspace raises CKA: it flatters",
                first=Term(arm=_OURS, figure="CKA without body"),
                second=Term(arm=_OURS, figure="CKA"),
            ),
        ),
        shown=("CKA", "CKA without body"),
        drawn=("CKA", "CKA without body"),
        paper=(
            "CKA of 0.9139 +- 0.0099 against 0.8659 +- 0.0064 of UniVLA, another model, after removing a domain "
            "subspace (logistic-regression directions, PCA; 50 bootstraps) of unknown size. Masks on against off it "
            "does not give, nor CKA without the removal."
        ),
        notes=(
            CODES_NOTE,
            UNSEEN_NOTE,
            "The paper does not say which pairs are compared. Ours are a robot's pair of frames and the hand's whose "
            "effector moved most alike in the picture; the mean is over two robots. Nor does it say what its "
            "bootstraps draw. Ours draw whole clips, of hands and of robots, for pairs of a clip are alike; the "
            "interval lies around the CKA of all pairs, for fewer clips have a higher one.",
            f"Of every arm the body subspace has {NUM_BODY_DIRECTIONS} directions of 8 numbers, by logistic regression "
            "alone. The more are removed, the higher CKA may be.",
            "Nothing is trained for this: these are the latent actions of latent-quality.",
            MASKS_NOTE,
            PAPERS_LOSS_NOTE,
        ),
    )
