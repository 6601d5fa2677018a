"""What Triton is told about a revision."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Literal

import pytest

from service.model_settings import ModelSettings
from service.triton.repository import model_config, model_name, remove_model, write_model
from service.triton.tensors import REQUEST


def config(settings: ModelSettings, checkpoint: Path = Path("/checkpoints/tabletop")) -> str:
    return model_config(model_name("0123456789ab"), checkpoint, settings)


def parameters(text: str) -> dict[str, str]:
    pairs = re.findall(r'parameters \{ key: (".*") value \{ string_value: (".*") \} \}', text)
    return {json.loads(key): json.loads(value) for key, value in pairs}


def test_requests_are_ragged_so_that_bodies_share_a_batch() -> None:
    text = config(ModelSettings())
    assert model_name("0123456789ab") == "premotor_0123456789ab"
    assert model_name("0123456789ab", "2") == "premotor_0123456789ab_2"
    assert 'name: "premotor_0123456789ab"' in text
    assert f'input [ {{ name: "{REQUEST}" data_type: TYPE_UINT8 dims: [ -1 ] allow_ragged_batch: true }} ]' in text


def test_there_is_never_a_queue_policy() -> None:
    text = config(ModelSettings(max_queue_delay_us=500))
    assert "dynamic_batching { max_queue_delay_microseconds: 500 }" in text
    assert "queue_policy" not in text


def test_without_batching_a_batch_is_one_request() -> None:
    text = config(ModelSettings(batching=False, max_batch_size=8))
    assert "max_batch_size: 1\n" in text
    assert "dynamic_batching" not in text


@pytest.mark.parametrize(("device", "kind"), [("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")])
def test_the_instance_runs_on_the_device(device: Literal["cpu", "cuda"], kind: str) -> None:
    text = config(ModelSettings(device=device, dtype="bf16", threads=3))
    assert f"instance_group [ {{ kind: {kind} count: 1 }} ]" in text
    assert parameters(text) == {
        "checkpoint": "/checkpoints/tabletop",
        "device": device,
        "dtype": "bf16",
        "threads": "3",
        "shares_memory": "false",
    }


def test_a_model_reads_memory_only_where_it_is_told_to() -> None:
    text = model_config("model", Path("/checkpoints/tabletop"), ModelSettings(), shares_memory=True)
    assert parameters(text)["shares_memory"] == "true"


def test_a_path_with_quotes_and_spaces_stays_one_string(tmp_path: Path) -> None:
    directory = tmp_path / 'my "best" run\\1 é'
    assert parameters(config(ModelSettings(), directory))["checkpoint"] == str(directory)


def test_the_model_source_is_python_and_goes_away_with_the_model(tmp_path: Path) -> None:
    write_model(tmp_path, "premotor_0123456789ab_0", tmp_path, ModelSettings())
    directory = tmp_path / "premotor_0123456789ab_0"
    ast.parse((directory / "1" / "model.py").read_text())
    assert {path.name for path in directory.rglob("*") if path.is_file()} == {"config.pbtxt", "model.py"}
    remove_model(tmp_path, "premotor_0123456789ab_0")
    assert not directory.exists()


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"max_batch_size": 0}, {"max_queue_delay_us": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelSettings(**wrong)
