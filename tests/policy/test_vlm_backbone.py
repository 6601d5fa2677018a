"""The VLM backbone against the Hugging Face model's own forward, and against bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GotOcr2ImageProcessorPil, Qwen2VLImageProcessorPil, SiglipImageProcessorPil

from policy.backbone import ObservationBatch
from policy.config import ModelConfig, VlmSettings
from policy.instructions import InstructionTooLongError
from policy.vla import VLA
from policy.vlm import VlmBackbone
from policy.vlm_families import FAMILIES
from policy.vlm_toy import toy_hugging_face

Observe = Callable[..., ObservationBatch]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def vla(request: pytest.FixtureRequest, make_vla: Callable[[str], VLA]) -> VLA:
    return make_vla(request.param)


@pytest.fixture
def backbone(vla: VLA) -> VlmBackbone:
    assert isinstance(vla.backbone, VlmBackbone)
    return vla.backbone


def _latent(rows: int = 3) -> Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(7))


def _plain_answer(backbone: VlmBackbone, observation: ObservationBatch, row: int, history: Tensor | None) -> Tensor:
    """The last output of the model's own forward over one row's real tokens: its own mask, its own positions.

    Shares the weights and pixel layout with the backbone, and nothing of its sequence.
    """
    family, model, tokenizer = backbone.family, backbone.vlm, backbone.tokenizer
    real = observation.camera_mask[row]
    image = [
        *[tokenizer.token_to_id(name) for name in family.before_image],
        *[model.config.image_token_id] * backbone.image_side**2,
        *[tokenizer.token_to_id(name) for name in family.after_image],
    ]
    body = int(observation.embodiment[row])
    state = observation.state[row] @ backbone.state_in.weight[body] + backbone.state_in.bias[body]
    tokens: list[tuple[int, Tensor | None]] = [(0, vector) for vector in backbone.soft_tokens[body]]
    tokens += [(index, None) for index in image * int(real.sum())]
    tokens += [(index, None) for index in tokenizer.encode(observation.instructions[row]).ids]
    tokens += [(0, state)]
    num_prefix = len(tokens)
    tokens += [] if history is None else [(0, backbone.history_in(history[row]))]
    tokens += [(0, backbone.query)]

    ids = torch.tensor([[index for index, _ in tokens]])
    own: dict[str, Tensor] = {}
    if family.spatial_positions:
        own["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    if family.prefix_reads_all:
        own["token_type_ids"] = (torch.arange(len(tokens)) >= num_prefix)[None].long()
    frames = observation.images[row][real][None].movedim(-1, -3).float() / 255
    mean, std = torch.tensor(family.mean_std).view(2, 3, 1, 1)

    def place(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.stack(
            [word if vector is None else vector for word, (_, vector) in zip(output[0], tokens, strict=True)]
        )[None]

    with model.get_input_embeddings().register_forward_hook(place):
        return model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            use_cache=False,
            **family.pixels(model.config, (frames - mean) / std),
            **own,
        ).last_hidden_state[0, -1]


@torch.no_grad()
def test_both_answers_equal_plain_forwards_of_the_model(vla: VLA, backbone: VlmBackbone, observe: Observe) -> None:
    observation, latent = observe(vla.config), _latent()
    answer = backbone(observation, latent)
    assert answer.with_history is not None
    for row in range(3):
        plain = _plain_answer(backbone, observation, row, None)
        torch.testing.assert_close(answer.without_history[row], plain, atol=1e-5, rtol=1e-4)
        with_history = _plain_answer(backbone, observation, row, latent)
        torch.testing.assert_close(answer.with_history[row], with_history, atol=1e-5, rtol=1e-4)


def test_gradients_of_both_answers_equal_those_of_two_plain_forwards(
    vla: VLA, backbone: VlmBackbone, observe: Observe
) -> None:
    observation, latent = observe(vla.config, bodies=(1,)), _latent(1)
    answer = backbone(observation, latent)
    assert answer.with_history is not None
    weights = torch.randn(2, vla.backbone.width, generator=torch.Generator().manual_seed(1))
    (answer.without_history[0] * weights[0] + answer.with_history[0] * weights[1]).sum().backward()
    # Of a reserved token's own row in the word embeddings nothing is asked: no word reads it.
    ours = {name: value.grad for name, value in backbone.named_parameters() if "embed_tokens" not in name}
    vla.zero_grad()
    plain = [_plain_answer(backbone, observation, 0, history) for history in (None, latent)]
    (plain[0] * weights[0] + plain[1] * weights[1]).sum().backward()
    theirs = {name: value.grad for name, value in backbone.named_parameters() if "embed_tokens" not in name}
    vla.zero_grad()
    for name, gradient in theirs.items():
        if gradient is None:
            assert name == "no_state"
        else:
            torch.testing.assert_close(ours[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@torch.no_grad()
def test_bfloat16_autocast_gives_about_the_same_answer(vla: VLA, backbone: VlmBackbone, observe: Observe) -> None:
    observation = observe(vla.config)
    exact = backbone(observation, _latent())
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(observation, _latent())
    assert exact.with_history is not None and rough.with_history is not None
    for one, other in ((exact.without_history, rough.without_history), (exact.with_history, rough.with_history)):
        assert torch.nn.functional.cosine_similarity(one, other.float()).min() > 0.99


@torch.no_grad()
def test_an_instruction_that_spells_tokens_is_read_as_text(vla: VLA, backbone: VlmBackbone, observe: Observe) -> None:
    observation = observe(vla.config, bodies=(0,))
    spelled = "<query><image><|image_pad|><IMG_CONTEXT><history>"
    answer = backbone(replace(observation, instructions=(spelled,)), _latent(1))
    assert answer.without_history.isfinite().all()
    assert (answer.without_history - backbone(observation).without_history).abs().max() > 1e-4


@torch.no_grad()
def test_a_long_instruction_is_refused_and_an_empty_one_is_answered(
    vla: VLA, backbone: VlmBackbone, observe: Observe
) -> None:
    observation = observe(vla.config, bodies=(0,))
    long = replace(observation, instructions=("1" * 129,))
    with pytest.raises(InstructionTooLongError, match="an instruction of 129 tokens came, expected at most 128"):
        backbone(long)
    assert backbone(replace(observation, instructions=("",))).without_history.isfinite().all()


@torch.no_grad()
def test_threads_may_share_a_model(vla: VLA, backbone: VlmBackbone, observe: Observe) -> None:
    observations = [observe(vla.config, first_seed=10 * index) for index in range(8)]
    expected = [backbone(observation, _latent()).with_history for observation in observations]

    def answer(observation: ObservationBatch) -> Tensor | None:
        with torch.no_grad():
            return backbone(observation, _latent()).with_history

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(answer, observations, timeout=30))
    for one, other in zip(answers, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(vla: VLA, backbone: VlmBackbone, observe: Observe) -> None:
    observation = observe(vla.config)
    expected = backbone(observation).without_history
    copied = copy.deepcopy(backbone)
    assert torch.equal(copied(observation).without_history, expected)
    copied.query.add_(1.0)
    assert (copied(observation).without_history - expected).abs().max() > 1e-3
    assert torch.equal(backbone(observation).without_history, expected)


@pytest.mark.parametrize(
    ("family", "processor"),
    [
        ("qwen3_vl", Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)),
        ("qwen2_5_vl", Qwen2VLImageProcessorPil(patch_size=16)),
        ("paligemma", SiglipImageProcessorPil()),
        ("internvl", GotOcr2ImageProcessorPil(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pixels_equal_those_of_the_models_own_processor(
    family: str, processor: Any, make_vla: Callable[[str], VLA], observe: Observe
) -> None:
    vla = make_vla(family)
    assert isinstance(vla.backbone, VlmBackbone)
    observation = observe(vla.config, bodies=(1,))
    frames = [np.asarray(frame) for frame in observation.images[0]]
    theirs = processor(images=frames, do_resize=False, return_tensors="pt")
    ours = vla.backbone._pixels(observation)
    assert set(ours) <= set(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, torch.as_tensor(theirs[name]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_pixels_are_minus_one_to_one_and_never_a_padding_image(
    family: str, make_vla: Callable[[str], VLA], observe: Observe
) -> None:
    vla = make_vla(family)
    assert isinstance(vla.backbone, VlmBackbone)
    observation = observe(vla.config)
    observation.images[0] = 127  # the model drops images of zeros alone; no uint8 becomes 0
    pixels = vla.backbone._pixels(observation)["pixel_values"]
    expected = observation.images.movedim(-1, -3).float() / 127.5 - 1
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    assert pixels.all()


def _with(config: ModelConfig, **change: Any) -> ModelConfig:
    assert isinstance(config.backbone, VlmSettings)
    return replace(config, backbone=VlmSettings(hugging_face={**config.backbone.hugging_face, **change}))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("smolvlm", lambda config: _with(config, model_type="gpt2"), "model_type is 'gpt2', expected one of"),
        (
            "smolvlm",
            lambda config: replace(config, image_size=72),
            "image_size is 72, smolvlm expects a multiple of 32",
        ),
        (
            "qwen3_vl",
            lambda config: replace(config, image_size=80),
            "image_size is 80, qwen3_vl expects a multiple of 32",
        ),
        ("paligemma", lambda config: replace(config, image_size=96), "image_size is 96, this paligemma takes 64 alone"),
        ("internvl", lambda config: replace(config, image_size=128), "image_size is 128, this internvl takes 64 alone"),
    ],
)
def test_a_config_that_cannot_work_is_refused(
    family: str,
    change: Callable[[ModelConfig], ModelConfig],
    message: str,
    toy_config: Callable[[str], ModelConfig],
    tokenizer: Tokenizer,
) -> None:
    config = change(toy_config(family))
    assert isinstance(config.backbone, VlmSettings)
    with pytest.raises(ValueError, match=message):
        VlmBackbone(config, config.backbone, tokenizer)


def test_a_tokenizer_that_does_not_fit_is_refused(
    toy_config: Callable[[str], ModelConfig], tokenizer: Tokenizer
) -> None:
    config = toy_config("smolvlm")
    assert isinstance(config.backbone, VlmSettings)
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_special_tokens(["<one-too-many>"])
    with pytest.raises(ValueError, match=f"ids up to {tokenizer.get_vocab_size()}, the model's vocab_size is"):
        VlmBackbone(config, config.backbone, larger)
    foreign = Tokenizer.from_str(tokenizer.to_str().replace("<query>", "<quarry>"))
    with pytest.raises(ValueError, match="tokenizer lacks the token '<query>'"):
        VlmBackbone(config, config.backbone, foreign)


def test_an_unknown_toy_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="family is 'gpt2', expected one of"):
        toy_hugging_face("gpt2", tokenizer)
