"""The model and its losses: what may read what, which path answers for which patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policy.visual_features import FrozenEyes
from training.latent_actions.model import LatentActionModel, Latents
from training.latent_actions.objective import (
    foreground_patches,
    latent_action_losses,
    masked_error,
    reconstructions,
)
from training.latent_actions.settings import EyesSettings, LatentActionSettings


@pytest.fixture
def model(settings: LatentActionSettings, eyes: FrozenEyes) -> LatentActionModel:
    torch.manual_seed(0)
    model = LatentActionModel(settings, eyes)
    with torch.no_grad():  # as trained: a fresh model predicts no change
        torch.nn.init.normal_(model.features_out.weight, std=0.1)
    return model


def features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(seed))


def test_action_and_background_have_tokens_of_their_own(model: LatentActionModel) -> None:
    latents = model.encode(features(3), features(3, 1))
    assert latents.action.shape == latents.background.shape == (3, 2, 8)
    assert not torch.allclose(latents.action, latents.background)


def test_latents_lie_on_one_sphere(model: LatentActionModel) -> None:
    latents = model.encode(features(3), 10 * features(3, 1))
    for each in (latents.action, latents.background):
        torch.testing.assert_close(each.square().mean(-1), torch.ones(3, 2), atol=1e-4, rtol=0)


def test_codes_depend_on_both_frames(model: LatentActionModel) -> None:
    latents = model.encode(features(1), features(1, 1))
    for other in (model.encode(features(1), features(1, 2)), model.encode(features(1, 2), features(1, 1))):
        assert not torch.allclose(latents.action, other.action)
        assert not torch.allclose(latents.background, other.background)


def test_a_fresh_decoder_says_that_nothing_changes(settings: LatentActionSettings, eyes: FrozenEyes) -> None:
    fresh = LatentActionModel(settings, eyes)
    codes = torch.randn(2, 2, 8)
    torch.testing.assert_close(fresh.decode(features(2), codes, codes), features(2))


def test_each_path_hears_its_own_codes_alone(model: LatentActionModel) -> None:
    torch.manual_seed(1)
    action, background, other = torch.randn(3, 2, 2, 8)
    full, moved, still = reconstructions(model, features(2), Latents(action, background))
    _, moved_again, other_still = reconstructions(model, features(2), Latents(action, other))
    torch.testing.assert_close(moved, moved_again)
    assert not torch.allclose(still, other_still)
    torch.testing.assert_close(full, model.decode(features(2), action, background))
    torch.testing.assert_close(moved, model.decode(features(2), action, torch.zeros_like(action)))


def test_the_error_is_of_the_masks_patches_in_the_whole_batch() -> None:
    truth = torch.zeros(2, 2, 3)
    guess = torch.tensor([[[1.0, 1, 1], [9, 9, 9]], [[2, 2, 2], [3, 3, 3]]])
    mask = torch.tensor([[True, False], [True, True]])
    assert masked_error(guess, truth, mask).item() == pytest.approx((1 + 4 + 9) / 3)
    assert masked_error(guess, truth, torch.zeros_like(mask)).item() == 0


def test_a_patch_is_foreground_where_more_than_half_of_it_moves() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, :4, :4] = 1
    mask[0, 4:6, 4:] = 1  # half of the last patch
    assert foreground_patches(mask, 2, 0.47)[0].tolist() == [True, False, False, True]
    assert foreground_patches(mask, 2, 0.5)[0].tolist() == [True, False, False, False]


def test_without_masks_both_paths_answer_for_all_patches(model: LatentActionModel) -> None:
    def errors(foreground: torch.Tensor | None) -> dict[str, float]:
        losses = latent_action_losses(model, features(2), features(2, 1), foreground)
        return {name: losses[name].item() for name in ("foreground", "background")}

    everything = torch.ones(2, 16, dtype=torch.bool)
    nothing_masked = errors(None)
    assert nothing_masked["foreground"] == pytest.approx(errors(everything)["foreground"])
    assert nothing_masked["background"] == pytest.approx(errors(~everything)["background"])
    assert errors(everything)["background"] == 0


def test_outside_the_foreground_the_action_path_is_held_to_the_first_frame(
    model: LatentActionModel, settings: LatentActionSettings, eyes: FrozenEyes
) -> None:
    foreground = torch.zeros(2, 16, dtype=torch.bool)
    foreground[:, :4] = True
    first, last = features(2), features(2, 1)
    losses = latent_action_losses(model, first, last, foreground)
    latents = model.encode(first, last)
    assert model.action_codebook is not None
    silent = torch.zeros_like(latents.action)
    moved = model.decode(first, model.action_codebook(latents.action).latents, silent)
    expected = (moved - first).square().mean(-1)[:, 4:].sum() / 8
    torch.testing.assert_close(losses["elsewhere"], expected)
    paper = LatentActionModel(replace(settings, elsewhere="anything"), eyes)
    assert "elsewhere" not in latent_action_losses(paper, first, last, foreground)


def test_the_loss_is_the_sum_of_its_parts_and_both_codebooks_learn(model: LatentActionModel) -> None:
    losses = latent_action_losses(model, features(4), features(4, 1), None)
    assert set(losses) >= {"action_usage", "action_perplexity", "background_usage", "background_perplexity"}
    parts = sum(losses[name].item() for name in ("full", "foreground", "background", "quantization"))
    assert losses["loss"].item() == pytest.approx(parts)
    losses["loss"].backward()
    for book in (model.action_codebook, model.background_codebook):
        assert book is not None and book.vectors.grad is not None and book.vectors.grad.any()
    assert not any(parameter.grad is not None for parameter in model.eyes.parameters())


def test_motion_is_asked_of_the_action_codes_alone(settings: LatentActionSettings, eyes: FrozenEyes) -> None:
    torch.manual_seed(0)
    model = LatentActionModel(settings, eyes)
    motion = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.motion_out.weight.zero_()
        model.motion_out.bias.zero_()
    losses = latent_action_losses(model, features(2), features(2, 1), None, motion)
    assert losses["motion"].item() == pytest.approx(1)  # says nothing
    torch.nn.init.normal_(model.motion_out.weight)
    latent_action_losses(model, features(2), features(2, 1), None, motion)["motion"].backward()
    assert model.action_latent.weight.grad is not None and model.action_latent.weight.grad.any()
    assert model.background_latent.weight.grad is None
    assert model.decoder.norm.weight.grad is None
    paper = LatentActionModel(replace(settings, motion_weight=0), eyes)
    assert "motion" not in latent_action_losses(paper, features(2), features(2, 1), None, motion)


def test_motion_that_is_not_known_is_not_asked_for(model: LatentActionModel) -> None:
    motion = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    unknown = motion.clone()
    unknown[0, :4] = torch.nan
    losses = latent_action_losses(model, features(2), features(2, 1), None, unknown, quantize=False)
    said = model.motion_out(model.encode(features(2), features(2, 1)).action.flatten(1))
    known = motion.isfinite() & unknown.isfinite()
    expected = (said - motion)[known].square().sum() / motion[known].square().sum()
    torch.testing.assert_close(losses["motion"], expected)
    losses["loss"].backward()
    assert model.action_latent.weight.grad is not None and model.action_latent.weight.grad.isfinite().all()


def test_masks_are_asked_of_the_encoders_patches_and_not_of_the_codes(
    model: LatentActionModel, settings: LatentActionSettings, eyes: FrozenEyes
) -> None:
    coverage = torch.rand(2, 16, 2, generator=torch.Generator().manual_seed(5))
    assert model.masks_out is not None
    with torch.no_grad():
        model.masks_out.weight.zero_()
        model.masks_out.bias.fill_(coverage.mean())
    masks = latent_action_losses(model, features(2), features(2, 1), None, None, coverage)["masks"]
    assert masks.item() == pytest.approx(1)  # says the mean
    torch.nn.init.normal_(model.masks_out.weight)
    latent_action_losses(model, features(2), features(2, 1), None, None, coverage)["masks"].backward()
    assert model.features_in.weight.grad is not None and model.features_in.weight.grad.any()
    assert model.action_latent.weight.grad is None
    assert model.decoder.norm.weight.grad is None
    paper = LatentActionModel(replace(settings, mask_weight=0), eyes)
    assert "masks" not in latent_action_losses(paper, features(2), features(2, 1), None, None, coverage)


def test_with_all_that_is_added_turned_off_the_loss_is_the_papers(
    settings: LatentActionSettings, eyes: FrozenEyes
) -> None:
    off = replace(settings, masked_frames="last", elsewhere="anything", motion_weight=0, mask_weight=0)
    model = LatentActionModel(off, eyes)
    losses = latent_action_losses(
        model, features(2), features(2, 1), torch.rand(2, 16) > 0.5, torch.randn(2, 8), torch.rand(2, 16, 2)
    )
    parts = ("full", "foreground", "background", "quantization")
    assert {name for name in losses if "_" not in name} == {"loss", *parts}
    torch.testing.assert_close(losses["loss"], torch.stack([losses[name] for name in parts]).sum())


def test_dead_codes_of_both_codebooks_revive(model: LatentActionModel) -> None:
    assert model.action_codebook is not None and model.background_codebook is not None
    before = [book.vectors.clone() for book in (model.action_codebook, model.background_codebook)]
    latent_action_losses(model, features(4), features(4, 1), None)
    assert torch.equal(model.action_codebook.vectors, before[0])
    latent_action_losses(model, features(4), features(4, 1), None, revive_with=torch.Generator().manual_seed(0))
    assert not torch.equal(model.action_codebook.vectors, before[0])
    assert not torch.equal(model.background_codebook.vectors, before[1])


def test_continuous_latents_have_no_codebooks_and_no_codes_in_the_log(
    settings: LatentActionSettings, eyes: FrozenEyes
) -> None:
    model = LatentActionModel(replace(settings, num_codes=0), eyes)
    losses = latent_action_losses(model, features(2), features(2, 1), None)
    assert model.action_codebook is None
    assert losses["quantization"].item() == 0
    assert "action_usage" not in losses


def test_a_model_sees_features_of_mean_zero_at_each_patch_and_variance_one(model: LatentActionModel) -> None:
    frames = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.measure(model.eyes(frames))
    seen = model.see(frames)
    torch.testing.assert_close(seen.mean(0), torch.zeros(16, 32), atol=1e-4, rtol=0)
    assert seen.square().mean().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masks": "sam"}, "masks is 'sam'"),
        ({"num_codes": 1}, "num_codes is 1"),
        ({"codes": 16}, "unknown keys"),
        ({"masked_frames": "first"}, "masked_frames"),
        ({"mask_weight": -1}, "mask_weight is -1"),
        ({"continuous_part": 1}, "continuous_part is 1"),
        ({"schedule": {"steps": 3}}, "latent_actions.schedule"),
        ([], "expected an object"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused_by_name(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentActionSettings.from_json(values)


def test_settings_survive_json(settings: LatentActionSettings, eyes_settings: EyesSettings) -> None:
    assert LatentActionSettings.from_json(settings.to_json()) == settings
    assert EyesSettings.from_json(eyes_settings.to_json()) == eyes_settings
