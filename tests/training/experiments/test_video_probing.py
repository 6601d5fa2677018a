"""Probes of codes clip by clip agree with those over all clips, and say what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy.visual_features import VisualSettings, build_eyes
from tests.training.latent_actions.conftest import write_clips
from training.ego_video.mask_scores import score_masks
from training.ego_video.pack import ClipPack
from training.experiments.video.figures import estimate, sample_of
from training.experiments.video.probing import alignment_by_draw, probe_by_clip
from training.latent_actions.model import LatentActionModel
from training.latent_actions.probes import probe
from training.latent_actions.readout import NUM_BODY_DIRECTIONS
from training.latent_actions.settings import LatentActionSettings


@pytest.fixture(scope="module")
def model() -> LatentActionModel:
    """Untrained: what is checked is that both ways of counting agree."""
    eyes = build_eyes(VisualSettings(image_size=32, patch=8, width=32, num_layers=1))
    settings = LatentActionSettings(
        gap_s=1.0, num_codes=8, num_tokens=2, latent_dim=8, width=32, encoder_layers=1, decoder_layers=1
    )
    return LatentActionModel(settings, eyes).eval()


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipPack, ClipPack]:
    root = tmp_path_factory.mktemp("clips")
    hands = write_clips(root / "hands", num_clips=12)
    return hands, write_clips(root / "robots", num_clips=8, seed=1, bodies=("panda", "sawyer"))


def test_counted_by_clip_figures_are_those_of_all_clips(
    model: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    hands, robots = packs
    found, whole = probe_by_clip(model, hands, robots), probe(model, hands)
    for name, figure in (
        ("effector, action", whole["r2"]["effector"]["action_codes"]),
        ("effector, background", whole["r2"]["effector"]["background_codes"]),
        ("effector in scene, action", whole["r2"]["effector_in_scene"]["action_codes"]),
        ("scenery, background", whole["r2"]["scenery"]["background_codes"]),
        ("usage", whole["codes"]["action"]["usage"]),
        ("perplexity", whole["codes"]["action"]["perplexity"]),
    ):
        sample = sample_of(name, [found])
        assert sample is not None
        assert estimate(sample, num_draws=10).value == pytest.approx(figure, rel=1e-5), name


def test_codes_carried_to_robots_are_counted_by_the_robots_clips(
    model: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    found = probe_by_clip(model, *packs)
    assert found["bodies"] == ["panda", "sawyer"] and found["num_directions_removed"] == [NUM_BODY_DIRECTIONS] * 2
    for name in ("own", "transferred", "shuffled", "none"):
        assert np.shape(found["sums"][f"transfer.{name}"]) == (8, 2)
    # A fresh decoder changes nothing, whatever it hears: the error is the change.
    for name in ("own codes", "transferred codes", "no codes"):
        sample = sample_of(name, [found])
        assert sample is not None and sample.by_seed == pytest.approx(1.0)


def test_masks_are_scored_by_clip(model: LatentActionModel, packs: tuple[ClipPack, ClipPack]) -> None:
    hands, robots = packs
    assert robots.truth is not None
    found = probe_by_clip(model, hands, replace(robots, masks=np.roll(np.asarray(robots.truth), 2, axis=2)))
    for name, pack in (("hands", hands), ("robots", robots)):
        assert np.shape(found["sums"][f"masks.{name}"]) == (len(pack.clips), 2)
    perfect, moved = (sample_of(name, [found]) for name in ("mask IoU", "mask IoU, robots"))
    assert perfect is not None and moved is not None
    assert estimate(perfect, num_draws=10).value == pytest.approx(score_masks(hands).mean_iou)
    assert 0.1 < estimate(moved, num_draws=10).value < 0.9
    assert "masks.robots" not in probe_by_clip(model, hands, replace(robots, truth=None))["sums"]


def test_bodies_that_differ_by_an_offset_alone_are_alike_once_it_is_removed() -> None:
    generator = np.random.default_rng(0)
    motion = generator.normal(size=(300, 6)).astype(np.float32)
    other = (motion + np.eye(6)[0] * 8 + generator.normal(size=(300, 6)) * 0.1).astype(np.float32)
    directions, found = alignment_by_draw(motion, other)
    assert len(directions) == NUM_BODY_DIRECTIONS
    assert len(found["cka.as_is"]) == len(found["cka.without_body"]) == 50
    assert min(found["cka.as_is"]) > 0.95 and min(found["cka.without_body"]) > 0.95
    others, unlike = alignment_by_draw(motion, generator.normal(size=(300, 6)).astype(np.float32))
    assert len(others) == NUM_BODY_DIRECTIONS
    assert max(unlike["cka.as_is"]) < 0.3


def test_clips_that_do_not_know_the_effector_are_refused(
    model: LatentActionModel, packs: tuple[ClipPack, ClipPack], tmp_path: Path
) -> None:
    hands, robots = packs
    with pytest.raises(ValueError, match="does not know where the effector is; film it again"):
        probe_by_clip(model, hands, replace(robots, effector=None))
