"""The four experiments on priors from video by name, and their pilot.

Paper B is arXiv 2606.18955. Its control, the same head without latent pretraining, was never run: it comes first here.
"""

from __future__ import annotations

from collections.abc import Mapping

from training.experiments.video.definitions.adaptation import PILOT_FAMILIES, adaptation
from training.experiments.video.definitions.alignment import alignment
from training.experiments.video.definitions.decoupling import decoupling
from training.experiments.video.definitions.latent_quality import latent_quality
from training.experiments.video.experiment import PolicyExperiment, VideoExperiment

VIDEO_EXPERIMENTS: Mapping[str, VideoExperiment] = {
    made.name: made for made in (latent_quality(), alignment(), adaptation(), decoupling())
}
# Before hours are spent: whether what most claims compare with leaves room below and above it.
PILOT = PolicyExperiment(
    name="video-pilot",
    title="Are the controls neither at the floor nor at the ceiling?",
    question="The controls of the experiments on video, by task and seed.",
    arms=tuple(arm for arm in adaptation().arms if arm.family in PILOT_FAMILIES),
    claims=(),
    figure="arms",
    paper="",
)
