from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from policy.qwen3_init import load_qwen3_layers
from policy.trunk import Trunk, TrunkConfig, causal_mask

_CONFIG = TrunkConfig(
    width=32, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48, rope_theta=1e6, norm_epsilon=1e-6
)


@pytest.fixture(scope="module")
def qwen3() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(params=["5GB", "20KB"], ids=["one file", "shards"])
def directory(qwen3: Qwen3ForCausalLM, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    qwen3.save_pretrained(tmp_path, max_shard_size=request.param)
    return tmp_path


def _x() -> Tensor:
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_all_layers_make_the_saved_model(qwen3: Qwen3ForCausalLM, directory: Path) -> None:
    trunk = Trunk(_CONFIG).eval()
    load_qwen3_layers(trunk, directory)
    expected = qwen3.model(inputs_embeds=_x(), use_cache=False).last_hidden_state
    torch.testing.assert_close(trunk(_x(), causal_mask(9)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fewer_layers_are_the_first_ones_under_a_fresh_norm(qwen3: Qwen3ForCausalLM, directory: Path) -> None:
    trunk = Trunk(replace(_CONFIG, num_layers=2)).eval()
    load_qwen3_layers(trunk, directory)
    states = qwen3.model(inputs_embeds=_x(), use_cache=False, output_hidden_states=True).hidden_states
    expected = F.rms_norm(states[2], (32,), eps=1e-6)
    torch.testing.assert_close(trunk(_x(), causal_mask(9)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_condition_stays_no_change(directory: Path) -> None:
    trunk = Trunk(_CONFIG, condition_width=16).eval()
    load_qwen3_layers(trunk, directory)
    assert torch.equal(trunk(_x(), condition=torch.ones(2, 16)), trunk(_x()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, "hidden_size in .* is 32, the trunk expects 16"),
        ({"num_kv_heads": 4}, "num_key_value_heads in .* is 2, the trunk expects 4"),
        ({"rope_theta": 1e4}, "rope_theta in .* is 1000000.0, the trunk expects 10000.0"),
        ({"num_layers": 5}, "num_hidden_layers in .* is 4, the trunk expects at least 5"),
    ],
)
def test_layers_of_another_shape_are_refused(
    qwen3: Qwen3ForCausalLM, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    qwen3.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_qwen3_layers(Trunk(replace(_CONFIG, **change)), tmp_path)


def test_a_config_that_does_not_say_how_many_layers_there_are_is_refused(
    qwen3: Qwen3ForCausalLM, tmp_path: Path
) -> None:
    qwen3.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["num_hidden_layers"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"num_hidden_layers in .* is None, the trunk expects at least 4"):
        load_qwen3_layers(Trunk(_CONFIG), tmp_path)


def test_a_missing_tensor_is_refused(qwen3: Qwen3ForCausalLM, tmp_path: Path) -> None:
    qwen3.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['model.layers.1.mlp.up_proj.weight'\]"):
        load_qwen3_layers(Trunk(_CONFIG), tmp_path)


def test_another_architecture_is_refused(qwen3: Qwen3ForCausalLM, tmp_path: Path) -> None:
    qwen3.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llama"}))
    with pytest.raises(ValueError, match=r"model_type in .* is 'llama', the trunk expects 'qwen3'"):
        load_qwen3_layers(Trunk(_CONFIG), tmp_path)
