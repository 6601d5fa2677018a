"""The eight experiments. Arms that are the same training under two names are trained once.

Owns which arms there are, what is claimed of them and what paper A (arXiv 2606.26095, Tables III and IV, Fig. 1c) says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from training.experiments.experiment import Arm, Comparison, Condition, Experiment, Ratio, Training
from training.names import unknown_name

HISTORY_DELAY = 4
FEW = (0, 5, 10, 50)
LOW_DATA = (5, 10, 20, 50)
INFERENCE_DELAYS = (1, 2, 3, 4, 5)
_REFERENCE_DELAYS = (1, 3, 5)
_LOGGED_STEPS = 500
_DEFAULT_LOW_DATA = 10

_BOTH_PASSES = (
    "With history every sample is trained with it and without (history_pass both, paper A's way); the shipped policy's "
    "recipe, cross13-history, draws one of the two for each sample (sampled): the same loss in expectation, for less."
)

_NO_PRIOR = Training(prior="none", snapshots=True)
_STATE_PRIOR = Training(snapshots=True)
_UNDISTILLED = replace(_STATE_PRIOR, decay=Fraction(0))
_JOINT = replace(_STATE_PRIOR, base="all")
_JOINT_HISTORY = replace(_JOINT, history=True)
_WITH_HISTORY = Condition(history=True)


def experiment(name: str) -> Experiment:
    """Raises UnknownNameError."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def _prior() -> Experiment:
    return Experiment(
        name="prior",
        title="Does the prior help, and does history?",
        question="One joint policy on all 13 tasks without prior, with it, and with prior and history token.",
        arms=(
            Arm(
                name="no-prior",
                training=replace(_NO_PRIOR, base="all"),
                paper={"all": 55.3, "low-data": 35.0, "rest": 64.3},
            ),
            Arm(name="state-prior", training=_JOINT, paper={"all": 64.9, "low-data": 61.3, "rest": 66.5}),
            Arm(
                name="history",
                training=_JOINT_HISTORY,
                condition=_WITH_HISTORY,
                paper={"all": 68.0, "low-data": 66.3, "rest": 68.8},
            ),
        ),
        comparisons=(
            Comparison(
                claim="the prior raises success over all tasks",
                arm="state-prior",
                baseline="no-prior",
                paper_points=9.6,
            ),
            Comparison(
                claim="the prior raises success of the low-data group",
                arm="state-prior",
                baseline="no-prior",
                tasks="low-data",
                paper_points=26.3,
            ),
            Comparison(
                claim="the prior raises success of the other tasks",
                arm="state-prior",
                baseline="no-prior",
                tasks="rest",
                paper_points=2.2,
            ),
            Comparison(
                claim="the prior is ahead at the first checkpoint",
                arm="state-prior",
                baseline="no-prior",
                checkpoint="first",
                paper_points=11.0,
            ),
            Comparison(claim="history adds to the prior", arm="history", baseline="state-prior", paper_points=3.1),
            Comparison(
                claim="history adds to the prior in the low-data group",
                arm="history",
                baseline="state-prior",
                tasks="low-data",
                paper_points=5.0,
            ),
            Comparison(
                claim="prior and history together raise success", arm="history", baseline="no-prior", paper_points=12.7
            ),
        ),
        figure="curve",
        paper=(
            "Table III: 55.3 without prior, 64.9 with it, 68.0 with prior and history over 13 tasks; 35.0, 61.3 and "
            "66.3 on its four real-robot tasks. Fig. 1c: 21.2 against 32.2 at the first checkpoint. No seeds, no "
            "intervals."
        ),
        notes=(
            "The paper's low-data group is its four real-robot tasks, ours the tasks with 10 demonstrations.",
            _BOTH_PASSES,
        ),
        goal=0.6,
    )


def _optimisation() -> Experiment:
    return Experiment(
        name="optimisation",
        title="Does training start better?",
        question="Prediction loss and gradient norm over the first 500 steps of stage 2.",
        arms=(
            Arm(name="no-prior", training=_NO_PRIOR, until=_LOGGED_STEPS),
            Arm(name="state-prior", training=_STATE_PRIOR, until=_LOGGED_STEPS),
            Arm(name="state-prior without distillation", training=_UNDISTILLED, until=_LOGGED_STEPS),
        ),
        ratios=(
            Ratio(
                claim="the prior lowers the prediction loss at the start",
                quantity="prediction",
                arm="state-prior",
                baseline="no-prior",
                paper_ratio=8.0,
            ),
            Ratio(
                claim="the prior lowers the gradient norm at the start",
                quantity="gradient_norm",
                arm="state-prior",
                baseline="no-prior",
                paper_ratio=16.0,
            ),
            Ratio(
                claim="the prior's weights alone lower the prediction loss at the start",
                quantity="prediction",
                arm="state-prior without distillation",
                baseline="no-prior",
            ),
            Ratio(
                claim="the prior's weights alone lower the gradient norm at the start",
                quantity="gradient_norm",
                arm="state-prior without distillation",
                baseline="no-prior",
            ),
        ),
        figure="losses",
        paper="Initial prediction loss about 8 times and gradient norm about 16 times lower with the prior.",
        notes=(
            "The gradient norm is that of the whole objective before clipping: with distillation it includes alignment "
            "and reconstruction, and in every arm the landmark loss. The third arm has the prior's weights and the "
            "objective of no-prior.",
            "These are the first steps of the runs that the other experiments test. Steps are counted from 1, whose "
            "loss is that before any update.",
        ),
    )


def _prior_kind() -> Experiment:
    return Experiment(
        name="prior-kind",
        title="What must the prior have seen, and is it more than compute?",
        question="No prior, one from actions, one from states and actions, and stage 1's compute put into stage 2.",
        arms=(
            Arm(name="no-prior", training=_NO_PRIOR, paper={"all": 64.6}),
            Arm(name="action-prior", training=replace(_STATE_PRIOR, prior="action"), paper={"all": 65.4}),
            Arm(name="state-prior", training=_STATE_PRIOR, paper={"all": 68.3}),
            Arm(name="random decoder, added compute", training=replace(_NO_PRIOR, added_compute=True)),
        ),
        comparisons=(
            Comparison(
                claim="a prior from states and actions helps", arm="state-prior", baseline="no-prior", paper_points=3.7
            ),
            Comparison(
                claim="a prior from actions alone helps", arm="action-prior", baseline="no-prior", paper_points=0.8
            ),
            Comparison(
                claim="states make the prior better", arm="state-prior", baseline="action-prior", paper_points=2.9
            ),
            Comparison(
                claim="the prior is worth more than its compute",
                arm="state-prior",
                baseline="random decoder, added compute",
                where_less_compute="the prior is worth more than {share} of its compute put into stage 2",
            ),
            Comparison(claim="stage 1's compute alone helps", arm="random decoder, added compute", baseline="no-prior"),
        ),
        figure="arms",
        paper=(
            "Table IV: +0.8 points with an action-only prior, +3.7 with states and actions. It has no control for the "
            "compute that stage 1 takes."
        ),
        notes=(
            "The control's stage 2 is longer by the steps that fit into the time of stage 1 and of distillation, at "
            "the budget's control_costs; the table of compute has what was measured. Where that gives the control "
            "more than 5 % less than the prior, the claim says how much it had.",
        ),
    )


def _scaling() -> Experiment:
    return Experiment(
        name="scaling",
        title="Does more motion without images make a better policy?",
        question="Stage 1 on once and four times the demonstrations, the added ones without images; one stage 2.",
        arms=(
            Arm(name="no-prior", training=_NO_PRIOR, paper={"all": 64.6}),
            Arm(name="motion x1", training=_STATE_PRIOR, paper={"all": 68.3}),
            Arm(name="motion x4", training=replace(_STATE_PRIOR, more_motion=True), paper={"all": 68.8}),
        ),
        comparisons=(
            Comparison(
                claim="four times the motion raises final success",
                arm="motion x4",
                baseline="motion x1",
                paper_points=0.5,
            ),
            Comparison(
                claim="four times the motion is ahead at the first checkpoint",
                arm="motion x4",
                baseline="motion x1",
                checkpoint="first",
                paper_points=3.2,
            ),
            Comparison(
                claim="four times the motion raises success of the low-data group",
                arm="motion x4",
                baseline="motion x1",
                tasks="low-data",
            ),
            Comparison(
                claim="four times the motion beats no prior at the first checkpoint",
                arm="motion x4",
                baseline="no-prior",
                checkpoint="first",
                paper_points=14.2,
            ),
        ),
        figure="curve",
        paper=(
            "At 5k steps 21.2 without prior, 32.2 with 565k and 35.4 with 2.3M transitions in stage 1; at the end "
            "64.6, 68.3 and 68.8."
        ),
        notes=(
            "Four times in all: every task gets equally many episodes more, so the low-data group gains most. Stage 1 "
            "takes equally many steps in both.",
        ),
    )


def _decay() -> Experiment:
    names = {"0": Fraction(0), "1/50": Fraction(1, 50), "1/10": Fraction(1, 10), "never": None}
    return Experiment(
        name="decay",
        title="Why must distillation end?",
        question="N_decay of 0, 1/50 and 1/10 of stage 2's steps, and lambda that never decays.",
        arms=tuple(
            Arm(name=f"N_decay {name}", training=replace(_STATE_PRIOR, decay=decay)) for name, decay in names.items()
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


def _low_data() -> Experiment:
    arms = []
    for num_episodes in LOW_DATA:
        changed = None if num_episodes == _DEFAULT_LOW_DATA else num_episodes
        for family, training in (("no-prior", _NO_PRIOR), ("state-prior", _STATE_PRIOR)):
            arms.append(
                Arm(
                    name=f"{family}, {num_episodes} demonstrations",
                    # The default number is the very run of the other experiments, snapshots and all.
                    training=training
                    if changed is None
                    else replace(training, low_data_episodes=changed, snapshots=False),
                    tasks="low-data",
                    family=family,
                    position=num_episodes,
                )
            )
    few, many = LOW_DATA[0], LOW_DATA[-1]
    return Experiment(
        name="low-data",
        title="Where does the gain live?",
        question="The low-data group with 5 to 50 demonstrations inside the joint mixture, with and without prior.",
        arms=tuple(arms),
        comparisons=(
            *(
                Comparison(
                    claim=f"the prior helps the low-data group at {count} demonstrations",
                    arm=f"state-prior, {count} demonstrations",
                    baseline=f"no-prior, {count} demonstrations",
                    tasks="low-data",
                )
                for count in LOW_DATA
            ),
            Comparison(
                claim=f"the prior helps more at {few} demonstrations than at {many}",
                arm=f"state-prior, {few} demonstrations",
                baseline=f"no-prior, {few} demonstrations",
                than=(f"state-prior, {many} demonstrations", f"no-prior, {many} demonstrations"),
                tasks="low-data",
            ),
        ),
        figure="families",
        axis="demonstrations of each low-data task",
        paper="+26.3 points on the four real-robot tasks (7.6 % of the frames) against +2.2 on the simulated ones.",
        notes=(
            "Only the low-data group's demonstrations vary, in stage 1 and stage 2 alike; the other tasks keep theirs. "
            "Statistics for normalisation are those of whole recordings in every arm.",
        ),
    )


def _unseen_body() -> Experiment:
    families = {
        "no prior": replace(_NO_PRIOR, left_out="everything", snapshots=False),
        "prior without the body": replace(_STATE_PRIOR, left_out="everything", snapshots=False),
        "prior with the body's motion": replace(_STATE_PRIOR, left_out="stage 2", snapshots=False),
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
        Arm(name="never left out, no prior", training=_NO_PRIOR, tasks="held-out"),
        Arm(name="never left out, prior", training=_STATE_PRIOR, tasks="held-out"),
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
        notes=(
            "A left-out body keeps its spec, its place in the model, its words and the statistics of its recordings; "
            "with 0 demonstrations it is played with weights that never saw it.",
        ),
    )


def _copycat() -> Experiment:
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
            ("history", _JOINT_HISTORY, _WITH_HISTORY, INFERENCE_DELAYS),
            ("state-prior", _JOINT, Condition(), _REFERENCE_DELAYS),
        )
        for delay in delays
    ]
    return Experiment(
        name="copycat",
        title="Is history used, or copied?",
        question="The history policy with its history shuffled, frozen, delayed or withheld, and with late chunks.",
        arms=(
            Arm(
                name="history",
                training=_JOINT_HISTORY,
                condition=_WITH_HISTORY,
                tasks="subset",
                family="history",
                position=0,
            ),
            Arm(name="state-prior", training=_JOINT, tasks="subset", family="state-prior", position=0),
            *(
                Arm(name=name, training=_JOINT_HISTORY, condition=condition, tasks="subset")
                for name, condition in changed.items()
            ),
            *late,
        ),
        comparisons=(
            *(
                Comparison(
                    claim=f"{name} lowers success: history is used",
                    arm=name,
                    baseline="history",
                    tasks="subset",
                    expected="lower",
                )
                for name in changed
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
            _BOTH_PASSES,
        ),
    )


EXPERIMENTS: Mapping[str, Experiment] = {
    made.name: made
    for made in (
        _prior(),
        _optimisation(),
        _prior_kind(),
        _scaling(),
        _decay(),
        _low_data(),
        _unseen_body(),
        _copycat(),
    )
}
