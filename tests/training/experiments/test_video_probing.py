"""Probes of codes clip by clip agree with those over all clips, and say what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.visual_features import VisualSettings, build_eyes
from tests.training.latent_actions.conftest import write_clips
from training.ego_video.mask_scores import score_masks
from training.ego_video.pack import ClipPack, FramePairs
from training.experiments.video.figures import FIGURES, estimate, sample_of
from training.experiments.video.probing import alignment_by_draw, probe_by_clip, read_targets, weights_by_draw
from training.latent_actions.model import LatentActionModel
from training.latent_actions.probes import probe
from training.latent_actions.readout import NUM_BODY_DIRECTIONS, readout_r2
from training.latent_actions.settings import LatentActionSettings


def untrained(num_codes: int) -> LatentActionModel:
    settings = LatentActionSettings(
        gap_s=1.0, num_codes=num_codes, num_tokens=2, latent_dim=8, width=32, encoder_layers=1, decoder_layers=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        eyes = build_eyes(VisualSettings(image_size=32, patch=8, width=32, num_layers=1))
        return LatentActionModel(settings, eyes).eval()


@pytest.fixture(scope="module")
def model() -> LatentActionModel:
    """What is checked of it is that both ways of counting agree."""
    return untrained(8)


@pytest.fixture(scope="module")
def talkative() -> LatentActionModel:
    """What its decoder shows is another with every pair's latents."""
    found, generator = untrained(0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in (found.features_in.weight, found.action_in.weight, found.features_out.weight):
            weights.copy_(torch.randn(weights.shape, generator=generator))
    return found


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
        ("effector, action latents", whole["r2"]["effector"]["action_latents"]),
        ("effector place, action", whole["r2"]["effector_place"]["action_codes"]),
        ("effector place, background", whole["r2"]["effector_place"]["background_codes"]),
        ("effector in scene, action", whole["r2"]["effector_in_scene"]["action_codes"]),
        ("scenery, background", whole["r2"]["scenery"]["background_codes"]),
        ("usage", whole["codes"]["action"]["usage"]),
        ("background usage", whole["codes"]["background"]["usage"]),
        ("perplexity", whole["codes"]["action"]["perplexity"]),
    ):
        sample = sample_of(name, [found])
        assert sample is not None
        assert estimate(sample, num_draws=10).value == pytest.approx(figure, rel=1e-5), name


def test_without_codebooks_both_read_outs_are_of_the_latents(
    talkative: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    sums = probe_by_clip(talkative, *packs)["sums"]
    assert sums["effector.action"] == sums["effector.action_latents"]
    assert "background_codes" not in sums


def test_codes_that_say_where_a_hand_is_say_nothing_of_its_motion_given_its_place(tmp_path: Path) -> None:
    pack = write_clips(tmp_path / "hands", num_clips=60)
    pairs = FramePairs(pack, 1.0)
    clip, frame = pairs.places(np.arange(len(pairs)))
    targets = read_targets(pack, clip, frame)
    moved, place, given = (targets[name] for name in ("effector", "effector_place", "effector_given_place"))
    assert readout_r2(place, moved, clip) > 0.2
    assert readout_r2(place, given, clip) < 0.05
    assert readout_r2(np.concatenate([place, moved], 1), given, clip) > 0.9


def test_what_place_alone_tells_is_the_same_of_every_model(
    model: LatentActionModel, talkative: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    hands, _ = packs
    pairs = FramePairs(hands, 1.0)
    clip, frame = pairs.places(np.arange(len(pairs)))
    targets = read_targets(hands, clip, frame)
    samples = [sample_of("effector, place", [probe_by_clip(each, *packs)]) for each in (model, talkative)]
    for sample in samples:
        assert sample is not None
        expected = readout_r2(targets["effector_place"], targets["effector"], clip)
        assert sample.by_seed == pytest.approx(expected)


def test_a_hand_out_of_the_picture_has_no_motion_given_its_place(packs: tuple[ClipPack, ClipPack]) -> None:
    hands, _ = packs
    effector = np.array(hands.effector)
    effector[5] = np.nan
    pairs = FramePairs(hands, 1.0)
    clip, frame = pairs.places(np.arange(len(pairs)))
    given = read_targets(replace(hands, effector=effector), clip, frame)["effector_given_place"]
    np.testing.assert_array_equal(np.isnan(given).any(1), (frame == 5).any(1))


def test_codes_carried_to_robots_are_counted_by_body(
    model: LatentActionModel, talkative: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    hands, robots = packs
    found = probe_by_clip(model, *packs)
    assert found["bodies"] == ["panda", "sawyer"] and found["num_directions_removed"] == [NUM_BODY_DIRECTIONS] * 2
    for name in ("own", "transferred", "shuffled", "none"):
        assert np.shape(found["sums"][f"transfer.{name}"]) == (2, 201)
    told = probe_by_clip(talkative, *packs)["sums"]["transfer.transferred"]
    assert told[0][0] != pytest.approx(told[1][0], rel=1e-3)
    for body, each in zip(("panda", "sawyer"), told, strict=True):
        alone = replace(robots, clips=tuple(clip for clip in robots.clips if clip.body == body))
        ((of_body, *_),) = probe_by_clip(talkative, hands, alone)["sums"]["transfer.transferred"]
        assert each[0] == pytest.approx(of_body)
    # A fresh decoder changes nothing, whatever it hears: the error is the change.
    for name in ("own codes", "transferred codes", "no codes"):
        sample = sample_of(name, [found])
        assert sample is not None and sample.by_seed == pytest.approx(1.0)


def test_codes_of_any_motion_are_not_of_a_stereotyped_body_s_few_partners(
    talkative: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    hands, robots = packs
    steady = np.arange(robots.num_frames)[:, None] * [1 / 128, 0.0]
    found = probe_by_clip(talkative, hands, replace(robots, effector=steady))
    assert [match["num_partner_pairs"] for match in found["matching"]] == [1, 1]
    partners, anyone = (found["sums"][FIGURES[name].part] for name in ("transferred codes", "shuffled codes"))
    for of_partner, of_any in zip(partners, anyone, strict=True):
        assert of_any[0] != pytest.approx(of_partner[0], rel=1e-5)


def test_partners_that_move_exactly_alike_do_not_differ_and_others_by_what_they_do(
    model: LatentActionModel, packs: tuple[ClipPack, ClipPack]
) -> None:
    hands, _ = packs
    (same,) = probe_by_clip(model, hands, hands)["matching"]
    assert same["mismatch"] == 0 and same["num_pairs"] == 12 * 4
    assert 1 < same["num_partner_clips"] <= 12 and same["num_partner_clips"] <= same["num_partner_pairs"] <= 48
    assert hands.effector is not None
    # Four frames apart it moves by 20 half pictures; a hand moves by 2 at most.
    far = np.arange(hands.num_frames)[:, None] * [5.0, 0.0]
    (apart,) = probe_by_clip(model, hands, replace(hands, effector=far))["matching"]
    assert apart["num_partner_pairs"] == 1 and 18 < apart["mismatch"] < 20


def test_a_pair_counts_as_often_as_its_hand_s_and_its_robot_s_clip_were_drawn() -> None:
    num_hands, num_robots = 7, 5
    grid = np.repeat(np.arange(num_hands), num_robots), np.tile(np.arange(num_robots), num_hands)
    one_robot = np.arange(num_hands), np.zeros(num_hands, np.int64)
    generator = np.random.default_rng(0)
    many, single = weights_by_draw([grid, one_robot], num_hands, generator)
    assert many.shape == (201, num_hands * num_robots) and single.shape == (201, num_hands)
    assert (many[0] == 1).all() and (single[0] == 1).all()
    # Hands' clips are drawn once for both bodies; the one robot's clip is always there.
    counts = many.reshape(-1, num_hands, num_robots)
    np.testing.assert_array_equal(counts.sum(2), single * num_robots)
    np.testing.assert_array_equal(counts * num_hands, single[:, :, None] * counts.sum(1)[:, None])
    assert (counts.sum((1, 2)) == num_hands * num_robots).all()
    assert len(np.unique(many, axis=0)) > 190


def test_a_draw_that_leaves_a_body_no_pair_is_drawn_again() -> None:
    lonely = np.array([3, 3]), np.array([0, 1])
    (weights,) = weights_by_draw([lonely], 8, np.random.default_rng(0))
    assert len(weights) == 201 and weights.any(1).all()


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
    weights = generator.multinomial(300, np.full(300, 1 / 300), size=50).astype(float)
    directions, found = alignment_by_draw(motion, other, weights)
    assert len(directions) == NUM_BODY_DIRECTIONS
    assert len(found["cka.as_is"]) == len(found["cka.without_body"]) == 50
    assert min(found["cka.as_is"]) > 0.95 and min(found["cka.without_body"]) > 0.95
    others, unlike = alignment_by_draw(motion, generator.normal(size=(300, 6)).astype(np.float32), weights)
    assert len(others) == NUM_BODY_DIRECTIONS
    assert max(unlike["cka.as_is"]) < 0.3


def test_clips_that_do_not_know_the_effector_are_refused(
    model: LatentActionModel, packs: tuple[ClipPack, ClipPack], tmp_path: Path
) -> None:
    hands, robots = packs
    with pytest.raises(ValueError, match="does not know where the effector is; film it again"):
        probe_by_clip(model, hands, replace(robots, effector=None))
