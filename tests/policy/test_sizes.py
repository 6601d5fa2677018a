from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from policy.backbone import ObservationBatch
from policy.config import ModelConfig, VlmSettings
from policy.embodiment import EmbodimentSpec
from policy.sizes import SIZES, paper, small, tiny, tiny_vlm
from policy.trunk import TrunkConfig
from policy.vla import VLA, HistoryBatch, build_vla
from policy.vlm_toy import toy_hugging_face

_VOCABULARY = 512


@pytest.fixture(scope="module")
def bodies(make_body: Callable[..., EmbodimentSpec]) -> tuple[EmbodimentSpec, ...]:
    """As wide as the three simulated bodies."""
    return (
        make_body("sawyer", cameras=2, state_dim=4, action_dim=4),
        make_body("aloha", cameras=2, state_dim=14, action_dim=14),
        make_body("panda", cameras=2, state_dim=9, action_dim=8),
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _build(config: ModelConfig, tokenizer: Tokenizer) -> VLA:
    with torch.device("meta"):
        return build_vla(config, tokenizer)


def test_tiny_has_at_most_12_million_parameters_and_128_pixels(
    bodies: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer
) -> None:
    config = tiny(bodies, _VOCABULARY)
    assert _num_parameters(_build(config, tokenizer)) <= 12e6
    assert config.image_size <= 128


def test_small_has_about_36_million_parameters(bodies: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer) -> None:
    assert 30e6 <= _num_parameters(_build(small(bodies, _VOCABULARY), tokenizer)) <= 42e6


def test_tiny_vlm_has_under_a_million_parameters(specs: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer) -> None:
    hugging_face = toy_hugging_face("smolvlm", tokenizer)
    vla = build_vla(tiny_vlm(specs, tokenizer.get_vocab_size(), hugging_face), tokenizer)
    assert _num_parameters(vla) < 1e6


def test_a_size_is_as_wide_as_its_widest_body(bodies: tuple[EmbodimentSpec, ...]) -> None:
    for size in (tiny, small):
        config = size(bodies, _VOCABULARY)
        assert (config.num_embodiments, config.max_cameras) == (3, 2)
        assert (config.max_state_dim, config.max_action_dim) == (14, 14)


def test_a_size_is_built_under_its_own_name(bodies: tuple[EmbodimentSpec, ...]) -> None:
    for name, size in SIZES.items():
        extra = ({},) if name in ("tiny-vlm", "paper") else ()
        assert size(bodies, _VOCABULARY, *extra).size == name


def test_papers_trunks_have_the_width_of_qwen3_0_6b(bodies: tuple[EmbodimentSpec, ...]) -> None:
    config = paper(bodies, _VOCABULARY, {})
    for trunk in (config.encoder, config.decoder):
        assert (trunk.width, trunk.num_heads, trunk.num_kv_heads, trunk.head_dim) == (1024, 16, 8, 128)
        assert (trunk.mlp_width, trunk.rope_theta) == (3072, 1e6)
    assert (config.action_horizon, config.execution_horizon, config.interpolation) == (15, 5, "bicubic")


def test_paper_at_toy_width_learns_end_to_end(
    specs: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer, observe: Callable[..., ObservationBatch]
) -> None:
    full = paper(specs, tokenizer.get_vocab_size(), toy_hugging_face("qwen3_vl", tokenizer, image_size=224))

    def shrink(trunk: TrunkConfig) -> TrunkConfig:
        return replace(trunk, width=trunk.width // 32, head_dim=trunk.head_dim // 16, mlp_width=trunk.mlp_width // 32)

    config = replace(full, encoder=shrink(full.encoder), decoder=shrink(full.decoder), latent_dim=32)
    assert isinstance(config.backbone, VlmSettings) and config.encoder.num_layers == full.encoder.num_layers
    torch.manual_seed(0)
    vla = build_vla(config, tokenizer)
    with torch.no_grad():
        for parameter in vla.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    observation = observe(config, bodies=(0, 1))
    steps = config.history_steps
    history = HistoryBatch(
        states=torch.randn(2, steps, config.max_state_dim),
        actions=torch.randn(2, steps, config.max_action_dim),
        step_mask=torch.ones(2, steps, dtype=torch.bool),
    )
    output = vla.observe(observation, history)
    assert output.with_history is not None
    noisy = torch.randn(2, config.action_horizon, config.max_action_dim)
    loss = torch.zeros(())
    for query in (output.without_history, output.with_history):
        latent = vla.to_latent(query)
        velocity = vla.prior.decoder(noisy, torch.full((2,), 0.5), latent, observation.embodiment)
        assert velocity.shape == (2, 15, 4)
        loss = loss + velocity.square().mean()
    loss.backward()
    untouched = {name for name, value in vla.named_parameters() if value.grad is None or not value.grad.any()}
    assert untouched == {"backbone.no_state"}
    assert all(value.grad is None or value.grad.isfinite().all() for value in vla.parameters())
    chunk = vla.sample(observation, history, noisy, torch.ones(2, 4, dtype=torch.bool), [2, 4])
    assert chunk.shape == (2, 15, 4) and chunk.isfinite().all()
