"""What a model's directory must hold, and what it says of words and pixels, in the formats that are published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from policy.vlm_directory import read_directory
from policy.vlm_families import FAMILIES
from policy.vocabulary import RESERVED

PUBLISHED = ("smolvlm", "qwen3_vl", "paligemma")


@pytest.fixture
def save(save_vlm: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    return partial(save_vlm, tmp_path / "model")


@pytest.fixture(scope="module")
def smolvlm(save_vlm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("models") / "smolvlm", "smolvlm")


@pytest.fixture
def model(smolvlm: Path, tmp_path: Path) -> Path:
    """A directory to damage."""
    return shutil.copytree(smolvlm, tmp_path / "model")


def processor(directory: Path, **changes: Any) -> None:
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reserved_tokens_take_free_rows_of_the_embedding_or_new_ones(
    save: Callable[..., Path], foreign_tokenizer: Tokenizer
) -> None:
    num_words = foreign_tokenizer.get_vocab_size()
    found = read_directory(save("smolvlm"))
    assert [found.tokenizer.token_to_id(name) for name in RESERVED] == list(range(num_words, num_words + 4))
    assert found.settings.hugging_face["text_config"]["vocab_size"] == -(-(num_words + 4) // 64) * 64
    found = read_directory(save("smolvlm", vocab_size=num_words + 4))
    assert found.settings.hugging_face["text_config"]["vocab_size"] == num_words + 4


def test_settings_do_not_tell_where_they_were_read(model: Path) -> None:
    text = json.dumps(read_directory(model).settings.hugging_face)
    assert str(model) not in text
    assert "_name_or_path" not in text


def test_a_tokenizer_forgets_what_its_last_call_padded_and_cut(model: Path) -> None:
    path = str(model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(2)
    tokenizer.save(path)
    assert 2 < len(read_directory(model).tokenizer.encode("press the red button").ids) < 40


@pytest.mark.parametrize(("family", "size"), [("smolvlm", 64), ("qwen3_vl", 96), ("paligemma", 64)])
def test_images_are_as_large_as_the_models_own_processor_makes_them(
    family: str, size: int, save: Callable[..., Path]
) -> None:
    directory = save(family)
    assert read_directory(directory).image_size(64) == size
    (directory / "preprocessor_config.json").unlink()
    assert read_directory(directory).image_size(64) == 64


def test_eyes_of_a_size_that_is_no_multiple_of_their_stride_leave_the_rest_out(model: Path) -> None:
    processor(model, max_image_size={"longest_edge": 100})
    assert read_directory(model).image_size(64) == 96


def test_a_processor_is_also_found_inside_the_one_config_of_newer_versions(model: Path) -> None:
    own = model / "preprocessor_config.json"
    inner = {**json.loads(own.read_text()), "max_image_size": {"longest_edge": 128}, "image_mean": [0.1, 0.2, 0.3]}
    (model / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    found = read_directory(model)
    assert (found.image_size(64), found.settings.image_mean) == (128, (0.1, 0.2, 0.3))
    (model / "processor_config.json").write_text(json.dumps({"processor_class": "SmolVLMProcessor"}))
    assert read_directory(model).image_size(64) == 64


@pytest.mark.parametrize(("resample", "interpolation"), [(1, "bicubic"), (2, "bilinear"), (3, "bicubic")])
def test_frames_are_resized_as_the_model_was_trained_or_the_nearest_to_it(
    resample: int, interpolation: str, model: Path
) -> None:
    processor(model, resample=resample)
    assert read_directory(model).interpolation == interpolation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\], expected three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"image_std is \[0.5, 0.0, 0.5\], expected three numbers from 1e-06"),
        ({"rescale_factor": 1 / 127.5}, r"preprocessor_config.json: rescale_factor is 0.0078.*, expected 0.0039"),
        ({"do_normalize": False}, "do_normalize is False, expected True"),
        ({"image_mean": 0.5}, "preprocessor_config.json: image_mean is 0.5, expected a number for each"),
        ({"image_std": ["0.5"] * 3}, "preprocessor_config.json: image_std is .*, expected a number for each"),
    ],
)
def test_pixels_that_cannot_be_made_so_are_refused(change: dict[str, Any], message: str, model: Path) -> None:
    processor(model, **change)
    with pytest.raises(ValueError, match=message):
        read_directory(model)


@pytest.mark.parametrize("model_type", ["llava", "someones_own"])
def test_a_family_that_is_not_supported_names_those_that_are(model_type: str, model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": {"AutoConfig": "own.Config"}}))
    with pytest.raises(
        ValueError, match=rf"config.json: model_type is '{model_type}', expected one of \[.*'paligemma'"
    ):
        read_directory(model)
    assert set(PUBLISHED) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "holds no config.json; give a directory that"),
        ("tokenizer.json", "holds no tokenizer.json; save the model's fast tokenizer there"),
        ("model.safetensors", "holds neither model.safetensors nor .*; save the model there with save_pretrained"),
    ],
)
def test_a_missing_file_is_named_with_the_remedy(name: str, message: str, model: Path) -> None:
    (model / name).unlink()
    with pytest.raises(OSError, match=message):
        read_directory(model)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"backbone directory .*nowhere is not there"):
        read_directory(tmp_path / "nowhere")


def test_pickled_weights_are_refused_with_the_reason(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(
        OSError, match=r"only pytorch_model.bin: a pickle, which is run when it is read; get the model's"
    ):
        read_directory(model)


def test_an_index_that_names_a_missing_shard_is_refused_by_its_name(save: Callable[..., Path]) -> None:
    directory = save("qwen3_vl", max_shard_size="300KB")
    read_directory(directory)
    shards = sorted(directory.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(
        OSError, match=rf"index.json names {shards[1].name}, .*\(1 of {len(shards)} files are missing\)"
    ):
        read_directory(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors"])
def test_an_index_may_name_safetensors_beside_it_alone(name: str, save: Callable[..., Path]) -> None:
    directory = save("qwen3_vl", max_shard_size="300KB")
    index = directory / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    first = sorted(set(table.values()))[0]
    (directory / first).rename(directory / name)
    index.write_text(json.dumps({"weight_map": {key: name if file == first else file for key, file in table.items()}}))
    with pytest.raises(OSError, match=rf"index.json names {name}, expected names of safetensors beside it; get the"):
        read_directory(directory)


def test_an_index_that_names_nothing_is_refused(save: Callable[..., Path]) -> None:
    directory = save("qwen3_vl", max_shard_size="300KB")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(OSError, match=r"index.json has no weight_map; save the model there with save_pretrained"):
        read_directory(directory)


@pytest.mark.parametrize("max_shard_size", ["50GB", "300KB"], ids=["whole", "sharded"])
def test_weights_that_were_not_copied_to_their_end_are_refused(max_shard_size: str, save: Callable[..., Path]) -> None:
    directory = save("qwen3_vl", max_shard_size=max_shard_size)
    cut = sorted(directory.glob("*.safetensors"))[-1]
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(OSError, match=rf"{cut.name} cannot be read: .*; copy it there again"):
        read_directory(directory)


def test_a_pointer_of_git_lfs_is_not_taken_for_weights(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(OSError, match="is a pointer of Git LFS, not weights; run `git lfs pull`"):
        read_directory(model)


def test_an_adapter_is_not_taken_for_a_model(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match="holds an adapter, not a model; merge it"):
        read_directory(model)


def test_the_digest_changes_with_the_weights_alone_too(save_vlm: Callable[..., Path], tmp_path: Path) -> None:
    one, same, other = (save_vlm(tmp_path / str(seed), "smolvlm", seed=seed) for seed in (3, 3, 4))
    assert read_directory(one).sha256 == read_directory(same).sha256 != read_directory(other).sha256
