"""What Triton is told about a revision."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from service.model_settings import ModelSettings
from service.triton.repository import model_config, model_name, remove_model, write_model


def parsed(settings: ModelSettings, checkpoint: Path = Path("/checkpoints/tabletop")) -> model_config_pb2.ModelConfig:
    return text_format.Parse(model_config("0123456789ab", checkpoint, settings), model_config_pb2.ModelConfig())


def test_every_input_is_ragged_so_that_bodies_share_a_batch() -> None:
    config = parsed(ModelSettings())
    assert config.name == model_name("0123456789ab") == "premotor_0123456789ab"
    assert all(tensor.allow_ragged_batch and list(tensor.dims) == [-1] for tensor in config.input)


def test_there_is_never_a_queue_policy() -> None:
    batcher = parsed(ModelSettings(max_queue_delay_us=500)).dynamic_batching
    assert batcher.max_queue_delay_microseconds == 500
    assert not batcher.HasField("default_queue_policy")
    assert not batcher.priority_queue_policy


def test_without_batching_a_batch_is_one_request() -> None:
    config = parsed(ModelSettings(batching=False, max_batch_size=8))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(("device", "kind"), [("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")])
def test_the_instance_runs_on_the_device(device: str, kind: str) -> None:
    config = parsed(ModelSettings(device=device, dtype="bf16", threads=3))
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.Kind.Value(kind), 1)
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters == {"checkpoint": "/checkpoints/tabletop", "device": device, "dtype": "bf16", "threads": "3"}


def test_a_path_with_quotes_and_spaces_arrives_whole(tmp_path: Path) -> None:
    directory = tmp_path / 'my "best" run\\1 é'
    assert parsed(ModelSettings(), directory).parameters["checkpoint"].string_value == str(directory)


def test_the_model_source_is_python_and_goes_away_with_the_model(tmp_path: Path) -> None:
    write_model(tmp_path, "0123456789ab", tmp_path, ModelSettings())
    directory = tmp_path / "premotor_0123456789ab"
    ast.parse((directory / "1" / "model.py").read_text())
    assert {path.name for path in directory.rglob("*") if path.is_file()} == {"config.pbtxt", "model.py"}
    remove_model(tmp_path, "0123456789ab")
    assert not directory.exists()


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"max_batch_size": 0}, {"max_queue_delay_us": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelSettings(**wrong)
