"""Qwen3 decoder layers into a Trunk: paper A starts motion encoder and action decoder from Qwen3-0.6B's.

Reads safetensors of a local Hugging Face directory with none of its code. Embeddings and head are left behind, and the
trunk's condition stays as it is, which is no change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from policy.trunk import Trunk, TrunkConfig
from policy.vlm_directory import check_weights, read_object, sha256_of

_PREFIX = "model."


@torch.no_grad()
def load_qwen3_layers(trunk: Trunk, directory: str | Path) -> None:
    """Copies the first `num_layers` layers, and the final norm when those are all.

    The norm of a deeper model fits the output of its last layer, not of an earlier one: a shorter trunk keeps its own.
    Raises OSError for files that are missing or not whole, ValueError that names what does not fit.
    """
    directory = Path(directory)
    config = _read_config(directory)
    _check(trunk.config, config, directory)
    wanted = {
        name: parameter
        for name, parameter in trunk.named_parameters()
        if ".modulation." not in name
        and (name != "norm.weight" or trunk.config.num_layers == config["num_hidden_layers"])
    }
    for name, value in _read(directory, {_PREFIX + name for name in wanted}):
        parameter = wanted[name.removeprefix(_PREFIX)]
        if value.shape != parameter.shape:
            raise ValueError(f"{name} in {directory} is {tuple(value.shape)}, expected {tuple(parameter.shape)}")
        parameter.copy_(value)


def layers_sha256(directory: str | Path) -> str:
    """Of config and weights. Reads all of them; raises as load_qwen3_layers does."""
    directory = Path(directory)
    _read_config(directory)
    return sha256_of([directory / "config.json", *check_weights(directory)])


def _read_config(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise OSError(f"{path} is not there; give a directory of Qwen3 that Hugging Face's save_pretrained wrote")
    return read_object(path)


def _check(trunk: TrunkConfig, config: Mapping[str, Any], directory: Path) -> None:
    rope = config.get("rope_parameters") or config
    found = {
        "model_type": config.get("model_type"),
        "hidden_size": config.get("hidden_size"),
        "num_attention_heads": config.get("num_attention_heads"),
        "num_key_value_heads": config.get("num_key_value_heads"),
        "head_dim": config.get("head_dim"),
        "intermediate_size": config.get("intermediate_size"),
        "rope_theta": rope.get("rope_theta"),
        "rms_norm_eps": config.get("rms_norm_eps"),
    }
    expected = {
        "model_type": "qwen3",
        "hidden_size": trunk.width,
        "num_attention_heads": trunk.num_heads,
        "num_key_value_heads": trunk.num_kv_heads,
        "head_dim": trunk.head_dim,
        "intermediate_size": trunk.mlp_width,
        "rope_theta": trunk.rope_theta,
        "rms_norm_eps": trunk.norm_epsilon,
    }
    for key, value in expected.items():
        if found[key] != value:
            raise ValueError(f"{key} in {directory / 'config.json'} is {found[key]!r}, the trunk expects {value!r}")
    num_layers = config.get("num_hidden_layers")
    if not isinstance(num_layers, int) or num_layers < trunk.num_layers:
        raise ValueError(
            f"num_hidden_layers in {directory / 'config.json'} is {num_layers}, "
            f"the trunk expects at least {trunk.num_layers}"
        )


def _read(directory: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, from one file or from shards."""
    missing = set(names)
    for path in check_weights(directory):
        with safe_open(path, framework="pt") as file:
            for name in sorted(missing.intersection(file.keys())):
                yield name, file.get_tensor(name)
                missing.discard(name)
    if missing:
        raise ValueError(f"{directory} lacks {sorted(missing)[:3]} and {len(missing)} tensors in all")
