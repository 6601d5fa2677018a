from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policy.config import ModelConfig

KINDS = ("convolutional", "smolvlm", "qwen3_vl")


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_survives_json(kind: str, toy_config: Callable[[str], ModelConfig]) -> None:
    config = toy_config(kind)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ((), r"model has unknown keys \['surplus'\]"),
        (("encoder",), r"encoder has unknown keys \['surplus'\]"),
        (("decoder",), r"decoder has unknown keys \['surplus'\]"),
        (("backbone",), r"backbone has unknown keys \['surplus'\]"),
        (("backbone", "trunk"), r"backbone.trunk has unknown keys \['surplus'\]"),
    ],
)
def test_an_unknown_key_is_refused_at_any_depth(
    path: tuple[str, ...], message: str, toy_config: Callable[[str], ModelConfig]
) -> None:
    values: dict[str, Any] = toy_config("convolutional").to_json()
    target = values
    for key in path:
        target = target[key]
    target["surplus"] = 1
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("latent_dim", None, "latent_dim"),
        ("encoder", None, "encoder is NoneType, expected an object"),
        ("backbone", None, "backbone.kind is None, expected 'convolutional' or 'vlm'"),
        ("backbone", {"kind": "telepathic"}, "backbone.kind is 'telepathic'"),
        ("backbone", {"kind": "vlm"}, "backbone: .*hugging_face"),
        ("execution_horizon", 7, "execution_horizon is 7, expected 1 to action_horizon 6"),
        ("execution_horizon", 0, "execution_horizon is 0"),
        ("num_inference_steps", 33, "num_inference_steps is 33, expected 1 to max_inference_steps 32"),
        ("noise_scale", 1.5, "noise_scale is 1.5, expected a number from 0 to 1"),
        ("image_size", 0, "image_size is 0, expected a whole number of at least 1"),
        ("latent_dim", "24", "latent_dim is '24', expected a whole number of at least 1"),
        ("history_steps", -1, "history_steps is -1, expected a whole number of at least 0"),
        ("num_soft_tokens", True, "num_soft_tokens is True, expected a whole number"),
        ("interpolation", "nearest", r"interpolation is 'nearest', expected one of \['bilinear', 'bicubic'\]"),
        ("encoder_inputs", "state", r"encoder_inputs is 'state', expected one of \['state-action', 'action'\]"),
    ],
)
def test_a_missing_or_impossible_value_is_refused(
    key: str, value: Any, message: str, toy_config: Callable[[str], ModelConfig]
) -> None:
    values = toy_config("convolutional").to_json()
    if value is None:
        del values[key]
    else:
        values[key] = value
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(values)


@pytest.mark.parametrize(
    ("num_kv_heads", "message"),
    [(3, "num_heads 4 is not a multiple of num_kv_heads 3"), (0, "trunk.num_kv_heads is 0, expected a whole number")],
)
def test_a_trunk_that_cannot_be_is_refused(
    num_kv_heads: int, message: str, toy_config: Callable[[str], ModelConfig]
) -> None:
    values = toy_config("convolutional").to_json()
    values["decoder"]["num_kv_heads"] = num_kv_heads
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("channels", [8, 8, 16], r"backbone.channels are \[8, 8, 16\], expected four multiples of 4"),
        ("channels", [8, 8, 16, 6], r"backbone.channels are .*, expected four multiples of 4"),
        ("channels", 8, "backbone: "),
        ("num_keypoints", 0, "backbone.num_keypoints is 0, expected a whole number of at least 1"),
    ],
)
def test_eyes_that_cannot_be_are_refused(
    key: str, value: Any, message: str, toy_config: Callable[[str], ModelConfig]
) -> None:
    values = toy_config("convolutional").to_json()
    values["backbone"][key] = value
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(values)


@pytest.mark.parametrize("values", [[], "model", None])
def test_a_config_that_is_no_object_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=f"model is {type(values).__name__}, expected an object"):
        ModelConfig.from_json(values)


def test_configs_differ_where_their_values_do(toy_config: Callable[[str], ModelConfig]) -> None:
    config = toy_config("convolutional")
    assert ModelConfig.from_json(replace(config, latent_dim=48).to_json()) != config
