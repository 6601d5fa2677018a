"""The four experiments on priors from video by name, and their pilot.

Paper B is arXiv 2606.18955. Its control, the same head without latent pretraining, was never run: it comes first here.
"""

from __future__ import annotations

from collections.abc import Mapping

from training.experiments.video.definitions.adaptation import adaptation
from training.experiments.video.definitions.alignment import alignment
from training.experiments.video.definitions.decoupling import decoupling
from training.experiments.video.definitions.latent_quality import latent_quality
from training.experiments.video.definitions.shared import CONTROL, DEMONSTRATIONS, at
from training.experiments.video.experiment import PolicyArm, PolicyExperiment, PolicyTraining, VideoExperiment

VIDEO_EXPERIMENTS: Mapping[str, VideoExperiment] = {
    made.name: made for made in (latent_quality(), alignment(), adaptation(), decoupling())
}
# Before hours are spent: whether the control leaves room below and above it. Its policies are adaptation's own.
PILOT = PolicyExperiment(
    name="video-pilot",
    title="Is the control neither at the floor nor at the ceiling?",
    question="The control of the experiments on video, by task.",
    arms=tuple(
        PolicyArm(name=at(CONTROL, count), training=PolicyTraining(demonstrations=count), family=CONTROL)
        for count in DEMONSTRATIONS
    ),
    claims=(),
    figure="arms",
    paper="",
)
