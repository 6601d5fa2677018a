from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.embodiment import EmbodimentSpec
from policy.images import resize_frames
from training.data.lerobot import DatasetError, LeRobotReader
from training.data.pack import NO_SEED, Pack, PackError, build_pack, build_packs

WriteDataset = Callable[..., Path]


def test_a_pack_holds_every_frame_of_the_dataset_in_order(
    tmp_path: Path, write_dataset: WriteDataset, spec: EmbodimentSpec
):
    reader = LeRobotReader(write_dataset(tmp_path / "push"))
    pack = build_pack(reader.root, tmp_path / "pack", image_size=None)
    for key, values in (
        ("observation.state", pack.state),
        ("action", pack.action),
        ("executed_action", pack.executed_action),
        ("observation.environment_state", pack.environment_state),
    ):
        assert values is not None and values.dtype == np.float32
        np.testing.assert_array_equal(values, np.concatenate([reader.numeric(e)[key] for e in reader.episodes]))
    assert (pack.num_frames, pack.num_episodes) == (24, 3)
    assert pack.episode_start.tolist() == [0, 7, 19]
    assert pack.episode_length.tolist() == [7, 12, 5]
    assert pack.episode_seed.tolist() == [100, 101, 102]
    assert pack.environment_state_names == ("observation.environment_state.0", "observation.environment_state.1")
    assert (pack.task, pack.instructions, pack.spec) == ("push", ("push the block",), spec)
    np.testing.assert_array_equal(pack.episode_of(np.array([0, 6, 7, 18, 19, 23])), [0, 0, 1, 1, 2, 2])


def test_images_are_the_decoded_frames_through_the_serving_resize(
    tmp_path: Path, write_dataset: WriteDataset, spec: EmbodimentSpec
):
    """96 frames cross the batches the builder resizes in; both cameras have another shape than the pack's."""
    reader = LeRobotReader(write_dataset(tmp_path / "push", (50, 46)))
    pack = build_pack(reader.root, tmp_path / "pack", image_size=24)
    for camera in spec.camera_names:
        frames = np.concatenate([reader.frames_all(e, f"observation.images.{camera}") for e in reader.episodes])
        expected = resize_frames(torch.from_numpy(frames), 24).numpy()
        assert pack.images[camera].shape == (96, 24, 24, 3) and pack.images[camera].dtype == np.uint8
        np.testing.assert_array_equal(pack.images[camera], expected)


def test_a_state_action_pack_has_no_images_on_disk_or_in_hand(tmp_path: Path, write_dataset: WriteDataset):
    pack = build_pack(write_dataset(tmp_path / "push"), tmp_path / "pack", image_size=None)
    assert pack.images == {} and pack.image_size is None
    assert not list((tmp_path / "pack").glob("images_*"))


def test_without_executed_actions_the_labels_were_executed(tmp_path: Path, write_dataset: WriteDataset):
    pack = build_pack(write_dataset(tmp_path / "push", executed=False), tmp_path / "pack", image_size=None)
    np.testing.assert_array_equal(pack.executed_action, pack.action)
    assert not (tmp_path / "pack/executed_action.npy").exists()


def test_arrays_are_mapped_read_only_not_loaded(tmp_path: Path, write_dataset: WriteDataset):
    pack = build_pack(write_dataset(tmp_path / "push"), tmp_path / "pack", image_size=16)
    for array in (pack.state, pack.action, pack.executed_action, pack.images["front"]):
        assert isinstance(array, np.memmap) and not array.flags.writeable


def test_a_pack_of_unchanged_data_is_not_built_again(tmp_path: Path, write_dataset: WriteDataset):
    dataset = write_dataset(tmp_path / "push")
    build_pack(dataset, tmp_path / "pack", image_size=16)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()}
    build_pack(dataset, tmp_path / "pack", image_size=16)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()} == before


def test_a_pack_is_built_again_when_the_data_or_the_image_size_changed(tmp_path: Path, write_dataset: WriteDataset):
    dataset = write_dataset(tmp_path / "push")
    first = np.array(build_pack(dataset, tmp_path / "pack", image_size=16).state)
    assert build_pack(dataset, tmp_path / "pack", image_size=8).images["front"].shape[1:] == (8, 8, 3)
    shutil.rmtree(dataset)
    write_dataset(dataset, seed=1)
    assert not np.array_equal(build_pack(dataset, tmp_path / "pack", image_size=8).state, first)


def test_two_builds_of_one_dataset_are_the_same_bytes(tmp_path: Path, write_dataset: WriteDataset):
    dataset = write_dataset(tmp_path / "push")
    for name in ("one", "two"):
        build_pack(dataset, tmp_path / name, image_size=16)
    ones, twos = (json.loads((tmp_path / name / "pack.json").read_text()) for name in ("one", "two"))
    assert ones == twos
    assert len(ones["source"]["sha256"]) == 64 and ones["source"]["name"] == "push"
    assert Pack.open(tmp_path / "one").source_sha256 == ones["source"]["sha256"]


def test_a_failed_build_leaves_the_old_pack(tmp_path: Path, write_dataset: WriteDataset):
    dataset = write_dataset(tmp_path / "push")
    build_pack(dataset, tmp_path / "pack", image_size=16)
    (dataset / "data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        build_pack(dataset, tmp_path / "pack", image_size=16)
    assert Pack.open(tmp_path / "pack").num_frames == 24


def test_what_an_interrupted_build_left_is_replaced(tmp_path: Path, write_dataset: WriteDataset):
    (tmp_path / "pack.tmp").mkdir()
    (tmp_path / "pack.tmp/stale.npy").write_bytes(b"half")
    build_pack(write_dataset(tmp_path / "push"), tmp_path / "pack", image_size=None)
    assert not (tmp_path / "pack/stale.npy").exists() and not (tmp_path / "pack.tmp").exists()


def test_a_line_says_that_a_pack_is_made_and_none_that_it_is_there(
    tmp_path: Path, write_dataset: WriteDataset, capsys: pytest.CaptureFixture[str]
):
    datasets = [write_dataset(tmp_path / "push", (4,)), write_dataset(tmp_path / "pull", (4, 5), seed=1)]
    build_packs(datasets[:1], tmp_path / "packs", image_size=None)
    assert capsys.readouterr().err == "packed push: 1 episodes, 4 frames\n"
    build_packs(datasets, tmp_path / "packs", image_size=None)
    assert capsys.readouterr().err == "packed pull: 2 episodes, 9 frames\n"


def test_packs_are_named_after_their_datasets(tmp_path: Path, write_dataset: WriteDataset):
    datasets = [write_dataset(tmp_path / name, (4,), seed=number) for number, name in enumerate(("push", "pull"))]
    packs = build_packs(datasets, tmp_path / "packs", image_size=None)
    assert [pack.directory for pack in packs] == [tmp_path / "packs/push", tmp_path / "packs/pull"]
    with pytest.raises(ValueError, match="share a directory name"):
        build_packs([tmp_path / "a/push", tmp_path / "b/push"], tmp_path / "packs", image_size=None)


def test_a_dataset_by_lerobot_packs_with_a_spec_from_its_features(
    tmp_path: Path, lerobot_fixture: Path, lerobot_expected: dict[str, np.ndarray]
):
    pack = build_pack(lerobot_fixture, tmp_path / "pack", image_size=32)
    np.testing.assert_array_equal(pack.state, lerobot_expected["state"])
    np.testing.assert_array_equal(pack.action, lerobot_expected["action"])
    assert (pack.spec.name, pack.spec.state_dim, pack.spec.action_dim) == ("panda", 8, 7)
    assert pack.spec.control_rate_hz == 10.0
    assert pack.instructions == ("task 0", "task 1") and pack.episode_instruction.tolist() == [0, 1, 0]
    assert pack.episode_seed.tolist() == [NO_SEED] * 3
    assert pack.images["front"].shape == (41, 32, 32, 3)
    assert pack.task == "lerobot_v30"
    assert pack.instructions_of(np.array([0, 11, 12, 31, 32])) == ["task 0"] * 2 + ["task 1"] * 2 + ["task 0"]


def test_a_cut_or_missing_file_is_refused_at_open(tmp_path: Path, write_dataset: WriteDataset):
    build_pack(write_dataset(tmp_path / "push"), tmp_path / "pack", image_size=None)
    path = tmp_path / "pack/state.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(PackError, match=r"state\.npy has \d+ bytes, expected"):
        Pack.open(tmp_path / "pack")
    path.unlink()
    with pytest.raises(PackError, match=r"state\.npy has None bytes"):
        Pack.open(tmp_path / "pack")


def test_verify_finds_a_flipped_byte(tmp_path: Path, write_dataset: WriteDataset):
    pack = build_pack(write_dataset(tmp_path / "push"), tmp_path / "pack", image_size=None)
    pack.verify()
    path = tmp_path / "pack/action.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackError, match=r"action\.npy does not have the sha256"):
        Pack.open(tmp_path / "pack").verify()


def test_a_directory_that_is_no_pack_or_a_later_one_is_refused(tmp_path: Path, write_dataset: WriteDataset):
    with pytest.raises(PackError, match="is not a pack"):
        Pack.open(tmp_path)
    build_pack(write_dataset(tmp_path / "push"), tmp_path / "pack", image_size=None)
    path = tmp_path / "pack/pack.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(PackError, match="format_version 2, expected 1"):
        Pack.open(tmp_path / "pack")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("state", {"dim": 5}, "'observation.state' has shape"),
        ("cameras", {"height": 66}, "camera 'front'"),
        ("cameras", {"name": "side"}, "no camera 'side', it has"),
    ],
)
def test_a_dataset_that_does_not_fit_its_embodiment_is_refused(
    tmp_path: Path, write_dataset: WriteDataset, part: str, change: dict[str, object], message: str
):
    dataset = write_dataset(tmp_path / "push", (4,))
    path = dataset / "meta/premotor.json"
    annotations = json.loads(path.read_text())
    annotations["embodiment"][part][0] |= change
    path.write_text(json.dumps(annotations))
    with pytest.raises(DatasetError, match=message):
        build_pack(dataset, tmp_path / "pack", image_size=16)
    assert not (tmp_path / "pack").exists()
