from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.ego_video.pack import MANIFEST, Clip, ClipPack, ClipPackError, ClipPackWriter

SIZE = 8


def arrays(num_frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "frames": rng.integers(0, 256, (num_frames, SIZE, SIZE, 3), np.uint8),
        "masks": rng.integers(0, 256, (num_frames, SIZE, SIZE), np.uint8),
        "flow_steps": rng.normal(size=(num_frames, 4)).astype(np.float32),
        "truth": rng.integers(0, 256, (num_frames, SIZE, SIZE), np.uint8),
        "truth_steps": rng.normal(size=(num_frames, 4)).astype(np.float32),
        "effector": rng.normal(size=(num_frames, 2)).astype(np.float32),
        "scenery": rng.normal(size=(num_frames, 2)).astype(np.float32),
    }


def clip(name: str = "a", **fields: str) -> Clip:
    return Clip(name=name, source="test", rate_hz=10, **fields)


def write(directory: Path, *lengths: int, instruction: str = "push it", skip: str = "") -> ClipPack:
    writer = ClipPackWriter(directory, SIZE)
    for number, length in enumerate(lengths):
        writer.add(clip(f"clip {number}", instruction=instruction, body="hand"), **arrays(length, number))
    if skip:
        writer.skip(skip, "damaged")
    return writer.close()


def test_a_pack_gives_back_every_array_of_every_clip(tmp_path: Path) -> None:
    pack = write(tmp_path / "pack", 5, 7, 3)
    assert [(c.first_frame, c.num_frames, c.instruction, c.body) for c in pack.clips] == [
        (0, 5, "push it", "hand"),
        (5, 7, "push it", "hand"),
        (12, 3, "push it", "hand"),
    ]
    for number, stored in enumerate(pack.clips):
        for name, expected in arrays(stored.num_frames, number).items():
            np.testing.assert_array_equal(getattr(pack, name)[pack.frames_of(stored)], expected)
    pack.verify()


def test_a_pack_is_mapped_and_cannot_be_written_through(tmp_path: Path) -> None:
    pack = write(tmp_path / "pack", 5)
    assert isinstance(pack.frames, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pack.frames[0] = 0


def test_arrays_that_no_clip_has_are_absent(tmp_path: Path) -> None:
    with ClipPackWriter(tmp_path / "pack", SIZE) as writer:
        writer.add(clip(), arrays(4)["frames"])
    pack = ClipPack.open(tmp_path / "pack")
    assert (pack.masks, pack.flow_steps, pack.truth, pack.truth_steps, pack.effector, pack.scenery) == (None,) * 6
    manifest = json.loads((tmp_path / "pack" / MANIFEST).read_text())
    assert (manifest["has_masks"], manifest["has_truth"], sorted(manifest["sha256"])) == (False, False, ["frames.npy"])


def test_the_digest_changes_with_words_and_pixels_and_not_with_what_was_skipped(tmp_path: Path) -> None:
    pack = write(tmp_path / "a", 5, 7)
    assert write(tmp_path / "b", 5, 7, skip="c.mp4").digest == pack.digest
    assert write(tmp_path / "c", 5, 7, instruction="lift it").digest != pack.digest
    assert write(tmp_path / "d", 7, 5).digest != pack.digest


def test_a_skipped_clip_is_in_the_pack_by_name_with_its_reason(tmp_path: Path) -> None:
    (skipped,) = write(tmp_path / "pack", 5, skip="c.mp4").skipped
    assert (skipped.name, skipped.reason) == ("c.mp4", "damaged")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": np.zeros((5, SIZE, SIZE + 1, 3), np.uint8)}, "frames of clip"),
        ({"frames": np.zeros((5, SIZE, SIZE, 3), np.float32)}, "frames of clip"),
        ({"masks": np.zeros((4, SIZE, SIZE), np.uint8)}, "masks of clip"),
        ({"effector": np.zeros((5, 2))}, "effector of clip"),
        ({"truth": None}, "those before it"),
        ({"frames": np.zeros((0, SIZE, SIZE, 3), np.uint8)}, "no frames"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused_and_the_pack_goes_on(tmp_path: Path, changed: dict, message: str) -> None:
    with ClipPackWriter(tmp_path / "pack", SIZE) as writer:
        writer.add(clip("a"), **arrays(3, 0))
        with pytest.raises(ValueError, match=message):
            writer.add(clip("b"), **{**arrays(5), **changed})
        writer.add(clip("c"), **arrays(2, 1))
    pack = ClipPack.open(tmp_path / "pack")
    assert [c.name for c in pack.clips] == ["a", "c"]
    np.testing.assert_array_equal(pack.masks, np.concatenate([arrays(3, 0)["masks"], arrays(2, 1)["masks"]]))


def test_two_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    writer = ClipPackWriter(tmp_path / "pack", SIZE)
    writer.add(clip("a"), arrays(3)["frames"])
    with pytest.raises(ValueError, match="two clips are named 'a'"):
        writer.add(clip("a"), arrays(3)["frames"])
    writer.discard()


@pytest.mark.parametrize("rate_hz", [0, -1, float("nan"), float("inf")])
def test_a_clip_without_a_rate_is_refused(rate_hz: float) -> None:
    with pytest.raises(ValueError, match="rate_hz"):
        Clip(name="a", source="test", rate_hz=rate_hz)


def test_a_pack_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    writer = ClipPackWriter(tmp_path / "pack", SIZE)
    writer.add(clip(), arrays(3)["frames"])
    assert not (tmp_path / "pack").exists()
    writer.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "pack"]


def test_an_exception_leaves_the_pack_that_was_there(tmp_path: Path) -> None:
    before = write(tmp_path / "pack", 5)
    with pytest.raises(ZeroDivisionError), ClipPackWriter(tmp_path / "pack", SIZE) as writer:
        writer.add(clip(), arrays(3)["frames"])
        raise ZeroDivisionError
    assert ClipPack.open(tmp_path / "pack").digest == before.digest
    assert list(tmp_path.iterdir()) == [tmp_path / "pack"]


def test_a_pack_of_no_clips_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer = ClipPackWriter(tmp_path / "pack", SIZE)
    writer.skip("a.mp4", "damaged")
    with pytest.raises(ValueError, match="1 were skipped"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_pack_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no clip pack"):
        ClipPackWriter(tmp_path / "home", SIZE)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def _edit(**values: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        manifest = json.loads((directory / MANIFEST).read_text())
        (directory / MANIFEST).write_text(json.dumps(manifest | values))

    return edit


def _cut(directory: Path) -> None:
    content = (directory / "masks.npy").read_bytes()
    (directory / "masks.npy").write_bytes(content[:-10])


def _pickled(directory: Path) -> None:
    np.save(directory / "truth.npy", np.array([{"a": 1}], object), allow_pickle=True)


def _other_length(directory: Path) -> None:
    np.save(directory / "effector.npy", np.zeros((4, 2), np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit(format_version=2), "format_version 2"),
        (_edit(clips=[{"nam": "a"}]), "unknown keys"),
        (_edit(clips=[]), "expected"),
        (_edit(image_size=9), "frames.npy"),
        (_edit(sha256={}), "lists no frames.npy"),
        (_cut, "masks.npy"),
        (_pickled, "truth.npy"),
        (_other_length, "effector.npy"),
        (lambda directory: (directory / MANIFEST).unlink(), "not a clip pack"),
        (lambda directory: (directory / "scenery.npy").unlink(), "scenery.npy"),
    ],
)
def test_a_damaged_pack_does_not_open(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "pack", 5)
    damage(tmp_path / "pack")
    with pytest.raises(ClipPackError, match=message):
        ClipPack.open(tmp_path / "pack")


def test_verify_finds_one_changed_pixel(tmp_path: Path) -> None:
    pack = write(tmp_path / "pack", 5)
    content = bytearray((tmp_path / "pack/frames.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "pack/frames.npy").write_bytes(content)
    with pytest.raises(ClipPackError, match=r"frames\.npy"):
        pack.verify()
