"""Is it the video, or the head?"""

from __future__ import annotations

from dataclasses import replace

from training.experiments.video.definitions.shared import (
    CODES_NOTE,
    CONTROL,
    DEMONSTRATIONS,
    FEW,
    INTENT_NOTE,
    LANDMARKS_NOTE,
    RESOLUTION_NOTE,
    SAMPLE_NOTE,
    SHIFT_NOTE,
    STEPS_NOTE,
    TASKS_NOTE,
    at,
)
from training.experiments.video.experiment import PolicyArm, PolicyClaim, PolicyExperiment, PolicyTraining

_LATENT, _STATE_PRIOR, _BOTH = "latent pretraining", "D's weights from stage 1", "both"
_ADDED = "no pretraining, added compute"
_HANDS = f"latent pretraining from hands alone, {FEW} demonstrations"
_JOINT, _JOINT_CONTROL, _HEAD = "joint-prior", "paper A's policy", "paper A's head, no prior"
_CONTRASTIVE = f"joint-prior by contrast, {FEW} demonstrations"
# Controls of controls: with as few demonstrations as a prior is for, and no more.
_AT_FEW = (_ADDED, _HEAD)
# Where these have no room, most claims have none.
PILOT_FAMILIES = (CONTROL, _HEAD, _JOINT_CONTROL)


def adaptation() -> PolicyExperiment:
    families = {
        CONTROL: PolicyTraining(demonstrations=FEW),
        _ADDED: PolicyTraining(demonstrations=FEW, added_compute=True),
        _LATENT: PolicyTraining(demonstrations=FEW, pretraining=True, learns_codes=True),
        _STATE_PRIOR: PolicyTraining(demonstrations=FEW, state_prior=True),
        _BOTH: PolicyTraining(demonstrations=FEW, pretraining=True, learns_codes=True, state_prior=True),
        _HEAD: PolicyTraining(demonstrations=FEW, head="motion"),
        _JOINT_CONTROL: PolicyTraining(demonstrations=FEW, head="motion", state_prior=True),
        _JOINT: PolicyTraining(demonstrations=FEW, head="motion", state_prior=True, joint="regression"),
    }
    arms = [
        PolicyArm(
            name=at(family, count),
            training=replace(training, demonstrations=count),
            family=family,
            position=count,
        )
        for family, training in families.items()
        for count in ((FEW,) if family in _AT_FEW else DEMONSTRATIONS)
    ]
    contrastive = replace(families[_JOINT], joint="contrastive")
    hands = replace(families[_LATENT], hands_only=True)
    return PolicyExperiment(
        name="adaptation",
        title="Is it the video, or the head?",
        question="Two tasks with 10 and 50 demonstrations each: one head and what comes before it, and the other head.",
        arms=(
            *arms,
            PolicyArm(name=_HANDS, training=hands),
            PolicyArm(name=_CONTRASTIVE, training=contrastive),
        ),
        claims=(
            *(
                PolicyClaim(claim=claim.format(count=count), arm=at(arm, count), baseline=at(baseline, count))
                for claim, arm, baseline in (
                    ("latent pretraining helps the same head at {count} demonstrations", _LATENT, CONTROL),
                    ("D's weights from stage 1 help the same head at {count} demonstrations", _STATE_PRIOR, CONTROL),
                    ("both help the same head at {count} demonstrations", _BOTH, CONTROL),
                    ("latent pretraining adds to D's weights at {count} demonstrations", _BOTH, _STATE_PRIOR),
                    ("clips help paper A's policy at {count} demonstrations", _JOINT, _JOINT_CONTROL),
                )
                for count in DEMONSTRATIONS
            ),
            PolicyClaim(
                claim=f"latent pretraining is worth more than its compute at {FEW} demonstrations",
                arm=at(_LATENT, FEW),
                baseline=at(_ADDED, FEW),
            ),
            PolicyClaim(
                claim=f"paper A's prior helps its own head at {FEW} demonstrations",
                arm=at(_JOINT_CONTROL, FEW),
                baseline=at(_HEAD, FEW),
            ),
            PolicyClaim(
                claim="paper A's head solves more than the one that reads intent and has eyes trained on the clips, "
                f"neither with a prior, at {FEW} demonstrations",
                arm=at(_HEAD, FEW),
                baseline=at(CONTROL, FEW),
                about_heads=True,
            ),
            PolicyClaim(
                claim=f"video of hands alone helps the same head at {FEW} demonstrations",
                arm=_HANDS,
                baseline=at(CONTROL, FEW),
            ),
            *(
                PolicyClaim(
                    claim=f"clips give paper A's policy more than latent pretraining gives the other head at {count} "
                    "demonstrations",
                    arm=at(_JOINT, count),
                    baseline=at(_JOINT_CONTROL, count),
                    than=(at(_LATENT, count), at(CONTROL, count)),
                )
                for count in DEMONSTRATIONS
            ),
            PolicyClaim(
                claim=f"latent pretraining helps more at {DEMONSTRATIONS[0]} demonstrations than at "
                f"{DEMONSTRATIONS[-1]}",
                arm=at(_LATENT, DEMONSTRATIONS[0]),
                baseline=at(CONTROL, DEMONSTRATIONS[0]),
                than=(at(_LATENT, DEMONSTRATIONS[-1]), at(CONTROL, DEMONSTRATIONS[-1])),
            ),
            PolicyClaim(
                claim=f"alignment by contrast beats alignment by regression at {FEW} demonstrations",
                arm=_CONTRASTIVE,
                baseline=at(_JOINT, FEW),
            ),
        ),
        figure="families",
        axis="demonstrations of each task",
        paper=(
            "Adaptation with 50 demonstrations per task only, and always with latent pretraining: 67.7 on RoboTwin and "
            "91.8 on LIBERO, against 63.6 and 88.1 of UniVLA. The same head without pretraining was not run."
        ),
        notes=(
            "The control reads what every other arm of its head reads and learns from the robots' actions alone: its "
            "frozen eyes were trained on the clips' single frames, its intent on nothing. Latent pretraining is all of "
            "paper B's: the clips' codes before, and a loss on the codes of the robots' own frames while adapting; "
            "decoupling takes the one without the other.",
            "Added compute is as many more steps of stage 2 as pretraining takes, by the budget's costs; what both "
            "took is measured above. What codes take, once for all policies of a seed, is not in it, nor is stage 1 "
            "in the arms that have none. A step of joint-prior, which sees clips beside robots, takes longer than one "
            "of its control, 0.61 s against 0.30 s by the budget's costs, and no control equals it.",
            "Paper A's policy and joint-prior have paper A's head, which reads the motion latent, and its "
            "distillation, for the first 36 of the 360 steps of stage 2; the learning rate rises over the first 9 of "
            "every arm. The head without any prior is compared with the other head's control, whose eyes saw the "
            "clips; for all else each is set against its own control, and two claims take the difference of both.",
            "D's weights from stage 1 are those that this head shares with paper A's decoder: layers, soft tokens and "
            "projections of actions. Paper A's prior itself, E's latent and the distillation, is no part of it.",
            "From hands alone, codes and pretraining see clips of hands and nothing else. The other arms' clips also "
            "show robots, of the tests' bodies at other tasks; here they are pictures for the eyes alone, which the "
            "control has as well.",
            INTENT_NOTE,
            STEPS_NOTE,
            SAMPLE_NOTE,
            SHIFT_NOTE,
            RESOLUTION_NOTE,
            TASKS_NOTE,
            LANDMARKS_NOTE,
            CODES_NOTE,
        ),
    )
