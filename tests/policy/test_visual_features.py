"""Frozen eyes: their settings, the small ones and those of Hugging Face's directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.images import to_unit_range
from policy.visual_features import (
    SmallVit,
    VisualSettings,
    build_eyes,
    grid_position,
    load_pretrained,
    read_visual_directory,
    to_patches,
)

SMALL = VisualSettings(image_size=16, patch=4, width=32, num_layers=1)
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def frames(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def vision_model(tmp_path: Path) -> Callable[..., Path]:
    """A toy vision model, saved as Hugging Face saves it."""

    def save(kind: str, **changes: Any) -> Path:
        from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

        torch.manual_seed(7)
        directory = tmp_path / kind
        if kind == "clip":
            text = {**VIT, "vocab_size": 16, "max_position_embeddings": 8, "projection_dim": 8}
            vision = {**VIT, "image_size": 16, "patch_size": 4, "projection_dim": 8}
            model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        else:
            config = AutoConfig.for_model(kind, **{**VIT, "image_size": 16, "patch_size": 4, **changes})
            model = AutoModel.from_config(config)
        model.save_pretrained(directory)
        return directory

    return save


def test_small_eyes_give_a_normalised_vector_for_each_patch() -> None:
    eyes = build_eyes(SMALL)
    features = eyes(frames(3, 16))
    assert features.shape == (3, eyes.num_tokens, eyes.width) == (3, 16, 32)
    torch.testing.assert_close(features.mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(-1, correction=0), torch.ones(3, 16), atol=1e-3, rtol=0)


def test_no_training_wakes_eyes_up() -> None:
    eyes = build_eyes(SMALL)
    torch.nn.ModuleDict({"eyes": eyes}).train()
    assert not eyes.training
    assert not any(module.training for module in eyes.modules())
    assert not any(parameter.requires_grad for parameter in eyes.parameters())
    assert not eyes(frames(1, 16)).requires_grad


def test_frames_of_another_size_are_resized_to_what_the_eyes_read() -> None:
    eyes = build_eyes(SMALL)
    large = frames(2, 16).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert eyes(large).shape == (2, 16, 32)


def test_a_frame_alone_has_the_features_it_has_in_a_batch() -> None:
    eyes = build_eyes(SMALL)
    several = frames(4, 16)
    torch.testing.assert_close(eyes(several[1:2]), eyes(several)[1:2], atol=1e-5, rtol=1e-5)


def test_patches_that_are_kept_read_no_others() -> None:
    vit = SmallVit(SMALL)
    planes = to_unit_range(frames(1, 16))
    changed = planes.clone()
    changed[:, :, 12:, 12:] = 0  # the last patch
    kept = torch.arange(15)[None]
    torch.testing.assert_close(vit(planes, kept), vit(changed, kept))
    everything = torch.arange(16)[None]
    torch.testing.assert_close(vit(planes, everything), vit(planes))
    assert not torch.allclose(vit(planes)[:, :15], vit(changed)[:, :15])


def test_patches_and_positions_run_row_by_row() -> None:
    frame = torch.arange(16.0).view(1, 1, 4, 4)
    assert to_patches(frame, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    grid = grid_position(3, 8).view(3, 3, 8)
    torch.testing.assert_close(grid[1, :, :4], grid[1, :1, :4].expand(3, 4))  # a row is one row
    torch.testing.assert_close(grid[:, 1, 4:], grid[:1, 1, 4:].expand(3, 4))  # a column one column
    assert len(torch.unique(grid.flatten(0, 1).round(decimals=4), dim=0)) == 9


@pytest.mark.parametrize("kind", ["dinov2", "vit", "clip"])
def test_a_model_reads_pictures_of_a_size_that_is_chosen(vision_model: Callable[..., Path], kind: str) -> None:
    directory = vision_model(kind)
    eyes = build_eyes(read_visual_directory(directory, 24))
    load_pretrained(eyes, directory)
    assert eyes(frames(2, 32)).shape == (2, 36, eyes.width)
    own = build_eyes(read_visual_directory(directory))
    assert own(frames(2, 32)).shape == (2, 16, eyes.width)
    with pytest.raises(ValueError, match="not a multiple of patch 4"):
        read_visual_directory(directory, 26)


def test_settings_survive_json() -> None:
    assert VisualSettings.from_json(json.loads(json.dumps(SMALL.to_json()))) == SMALL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "large"}, "visual.kind"),
        ({"image_size": 65}, "multiple of patch"),
        ({"width": 33}, "multiple of 32"),
        ({"patches": 8}, "unknown keys"),
        ({"kind": "transformers"}, "hugging_face"),
        ({"image_mean": [0.5]}, "expected 3"),
        ({"patch": "8"}, "visual: "),
        ([], "expected an object"),
    ],
)
def test_settings_that_cannot_be_built_are_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualSettings.from_json(values)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "vit", "siglip_vision_model"])
def test_a_vision_models_directory_gives_its_patches_without_class_and_registers(
    kind: str, vision_model: Callable[..., Path]
) -> None:
    from transformers import AutoModel

    directory = vision_model(kind)
    settings = read_visual_directory(directory)
    eyes = build_eyes(VisualSettings.from_json(json.loads(json.dumps(settings.to_json()))))
    load_pretrained(eyes, directory)
    seen = frames(2, 16)
    features = eyes(seen)
    assert features.shape == (2, 16, 32)
    pixels = to_unit_range(seen)
    expected = AutoModel.from_pretrained(directory)(pixel_values=pixels).last_hidden_state[:, -16:]
    expected = torch.nn.functional.layer_norm(expected, (32,))
    torch.testing.assert_close(features, expected.detach(), atol=1e-5, rtol=1e-5)


def test_of_a_model_with_text_the_eyes_are_its_vision_half(vision_model: Callable[..., Path]) -> None:
    from transformers import CLIPModel

    directory = vision_model("clip")
    eyes = build_eyes(read_visual_directory(directory))
    load_pretrained(eyes, directory)
    whole = CLIPModel.from_pretrained(directory)
    expected = whole.vision_model(pixel_values=to_unit_range(frames(2, 16))).last_hidden_state[:, -16:]
    expected = torch.nn.functional.layer_norm(expected, (32,))
    torch.testing.assert_close(eyes(frames(2, 16)), expected.detach(), atol=1e-5, rtol=1e-5)


def test_pixels_are_normalised_as_the_directory_says(vision_model: Callable[..., Path]) -> None:
    directory = vision_model("dinov2")
    (directory / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}')
    settings = read_visual_directory(directory)
    assert (settings.image_mean, settings.image_std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    plain = build_eyes(replace(settings, image_mean=(0.5,) * 3, image_std=(0.5,) * 3))
    eyes = build_eyes(settings)
    for each in (plain, eyes):
        load_pretrained(each, directory)
    assert not torch.allclose(plain(frames(1, 16)), eyes(frames(1, 16)))


def test_pixels_that_newer_versions_describe_inside_of_a_model_s_config_are_found(
    vision_model: Callable[..., Path],
) -> None:
    directory = vision_model("clip")
    inner = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    settings = read_visual_directory(directory)
    assert (settings.image_mean, settings.image_std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_pixels_that_are_made_in_another_way_are_refused(vision_model: Callable[..., Path]) -> None:
    directory = vision_model("dinov2")
    (directory / "preprocessor_config.json").write_text('{"do_normalize": false}')
    with pytest.raises(ValueError, match=r"preprocessor_config.json: do_normalize is False, expected True"):
        read_visual_directory(directory)


def test_a_directory_without_config_or_with_pickles_alone_is_refused(
    tmp_path: Path, vision_model: Callable[..., Path]
) -> None:
    with pytest.raises(OSError, match="save_pretrained"):
        read_visual_directory(tmp_path)
    directory = vision_model("vit")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(OSError, match="pickle"):
        read_visual_directory(directory)


def test_weights_that_are_not_all_there_are_refused(vision_model: Callable[..., Path]) -> None:
    directory = vision_model("dinov2")
    weights = load_file(directory / "model.safetensors")
    dropped = next(name for name in weights if "attention" in name)
    save_file({name: value for name, value in weights.items() if name != dropped}, directory / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_pretrained(build_eyes(read_visual_directory(directory)), directory)


def test_a_model_whose_tokens_are_not_the_settings_is_refused(vision_model: Callable[..., Path]) -> None:
    settings = read_visual_directory(vision_model("vit"))
    eyes = build_eyes(replace(settings, width=16))
    with pytest.raises(ValueError, match="16 tokens of 16"):
        eyes(frames(1, 16))
