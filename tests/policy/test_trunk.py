from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from policy.trunk import Trunk, TrunkConfig, causal_mask


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _config(num_kv_heads: int = 2) -> TrunkConfig:
    return TrunkConfig(
        width=48, num_layers=3, num_heads=4, num_kv_heads=num_kv_heads, head_dim=16, mlp_width=80, rope_theta=1e5
    )


def _qwen3(config: TrunkConfig) -> Qwen3Model:
    torch.manual_seed(0)
    model = Qwen3Model(
        Qwen3Config(
            vocab_size=32,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_the_trunk_is_qwen3_without_embeddings(num_kv_heads: int, training: bool) -> None:
    config = _config(num_kv_heads)
    qwen3 = _qwen3(config)
    trunk = Trunk(config)
    trunk.load_state_dict({name: value for name, value in qwen3.state_dict().items() if "embed" not in name})
    x = _draw(2, 11, config.width)
    with torch.set_grad_enabled(training):  # attention has a path of its own for a CPU that trains
        expected = qwen3(inputs_embeds=x, use_cache=False).last_hidden_state
        torch.testing.assert_close(trunk(x, causal_mask(11)), expected, atol=1e-5, rtol=1e-5)
        assert (trunk(x) - expected).abs().max() > 1e-2  # without the causal mask it is another function


def test_gradients_are_those_of_qwen3() -> None:
    config = _config()
    qwen3 = _qwen3(config)
    trunk = Trunk(config)
    trunk.load_state_dict({name: value for name, value in qwen3.state_dict().items() if "embed" not in name})
    weights = _draw(2, 11, config.width, seed=1)
    (trunk(_draw(2, 11, config.width), causal_mask(11)) * weights).sum().backward()
    (qwen3(inputs_embeds=_draw(2, 11, config.width), use_cache=False).last_hidden_state * weights).sum().backward()
    theirs = dict(qwen3.named_parameters())
    for name, parameter in trunk.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_fresh_condition_changes_nothing() -> None:
    torch.manual_seed(0)
    trunk = Trunk(_config(), condition_width=24).eval()
    x = _draw(2, 7, 48)
    assert torch.equal(trunk(x, condition=_draw(2, 24, seed=1)), trunk(x))


@torch.no_grad()
def test_a_trained_condition_reaches_its_own_sample_alone() -> None:
    torch.manual_seed(0)
    trunk = Trunk(_config(), condition_width=24).eval()
    for name, parameter in trunk.named_parameters():
        if "modulation" in name:
            parameter.normal_(std=0.1)
    x, condition = _draw(2, 7, 48), _draw(2, 24, seed=1)
    before, after = trunk(x, condition=condition), trunk(x, condition=condition + torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(after[0], before[0], atol=1e-6, rtol=0)
    assert (after[1] - before[1]).abs().max() > 1e-2


@pytest.mark.parametrize("training", [False, True])
def test_a_token_that_may_not_be_read_is_not_read(training: bool) -> None:
    torch.manual_seed(0)
    trunk = Trunk(_config()).eval()
    x = _draw(1, 6, 48)
    other = x.clone()
    other[:, 2] = 9.0
    readable = torch.ones(1, 1, 6, dtype=torch.bool)
    readable[..., 2] = False
    kept = [0, 1, 3, 4, 5]
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(trunk(x, readable)[:, kept], trunk(other, readable)[:, kept], atol=1e-6, rtol=0)
        assert (trunk(x)[:, kept] - trunk(other)[:, kept]).abs().max() > 1e-2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("readers", [1, 7], ids=["one-mask-for-all", "a-mask-each"])
@pytest.mark.parametrize("wanted", [slice(1), slice(3, None), slice(-3, None), slice(2, 5)], ids=str)
def test_wanted_tokens_are_those_of_all(wanted: slice, readers: int, training: bool) -> None:
    torch.manual_seed(0)
    trunk = Trunk(_config(), condition_width=24).eval()
    for name, parameter in trunk.named_parameters():
        if "modulation" in name:
            parameter.data.normal_(std=0.1)
    x, condition = _draw(2, 7, 48), _draw(2, 2, 24, seed=1)
    mask = _draw(2, readers, 7, seed=2) > -1
    mask[:, :, 0] = True
    second = _draw(2, 7, seed=3) > 0
    with torch.set_grad_enabled(training):
        for options in ({}, {"mask": mask}, {"condition": condition[:, 0]}, {"condition": condition, "second": second}):
            whole = trunk(x, **options)
            torch.testing.assert_close(trunk(x, wanted=wanted, **options), whole[:, wanted], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_only_relative_positions_matter() -> None:
    torch.manual_seed(0)
    trunk = Trunk(_config()).eval()
    x, positions = _draw(1, 6, 48), torch.arange(6)[None]
    torch.testing.assert_close(trunk(x, positions=positions + 13), trunk(x), atol=1e-4, rtol=0)
    assert (trunk(x, positions=positions * 2) - trunk(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: TrunkConfig(width=8, num_layers=1, num_heads=3, num_kv_heads=2, head_dim=4, mlp_width=8), "multiple"),
        (lambda: TrunkConfig(width=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=3, mlp_width=8), "odd"),
    ],
)
def test_an_impossible_trunk_is_refused(change: Callable[[], TrunkConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change()
