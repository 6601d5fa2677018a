from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.ego_video.pack import Clip, ClipPack, ClipPackWriter, FramePairs

RATES_HZ = (10.0, 20.0, 10.0, 10.0)
LENGTHS = (12, 30, 4, 9)  # the third is shorter than a gap of half a second


@pytest.fixture
def pack(tmp_path: Path) -> ClipPack:
    """Frame k of the pack is of the colour k, its mask 255 in half of the clips and 51 in the others."""
    writer = ClipPackWriter(tmp_path / "pack", 4)
    start = 0
    for number, (rate_hz, length) in enumerate(zip(RATES_HZ, LENGTHS, strict=True)):
        colours = np.arange(start, start + length, dtype=np.uint8)
        frames = np.broadcast_to(colours[:, None, None, None], (length, 4, 4, 3))
        masks = np.full((length, 4, 4), 255 if number % 2 else 51, np.uint8)
        writer.add(Clip(name=str(number), source="t", rate_hz=rate_hz, instruction=f"do {number}"), frames, masks)
        start += length
    return writer.close()


def clip_of(frames: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(LENGTHS), frames, side="right")


def test_the_pairs_are_all_frames_a_gap_apart_in_one_clip_at_its_own_rate(pack: ClipPack) -> None:
    pairs = FramePairs(pack, 0.5)
    clip, frame = pairs.places(np.arange(len(pairs)))
    expected = [
        (number, start + t, start + t + gap)
        for number, (start, length, gap) in enumerate(zip((0, 12, 42, 46), LENGTHS, (5, 10, 5, 5), strict=True))
        for t in range(length - gap)
    ]
    assert np.column_stack([clip, frame]).tolist() == [list(row) for row in expected]
    assert len(pairs) == 7 + 20 + 0 + 4
    assert pairs.clips_without == ["2"] and FramePairs(pack, 1.0).clips_without == ["2", "3"]


def test_a_batch_is_the_frames_masks_and_words_of_its_places(pack: ClipPack) -> None:
    pairs = FramePairs(pack, 0.5)
    batch = pairs.batch([30, 0, 7])
    assert batch.frame.tolist() == [[49, 54], [0, 5], [12, 22]]
    assert (batch.first[:, 0, 0, 0].tolist(), batch.last[:, 3, 3, 2].tolist()) == ([49, 0, 12], [54, 5, 22])
    assert batch.instruction == ("do 3", "do 0", "do 1")
    assert batch.first_mask is not None and batch.last_mask is not None
    np.testing.assert_allclose(batch.first_mask[:, 0, 0], [1, 0.2, 1])
    assert (batch.first.dtype, batch.last_mask.dtype, batch.clip.dtype) == (np.uint8, np.float32, np.int64)


def test_without_masks_a_batch_has_none(pack: ClipPack) -> None:
    batch = FramePairs(replace(pack, masks=None), 0.5).batch([0])
    assert (batch.first_mask, batch.last_mask) == (None, None)


def test_a_drawn_gap_depends_on_the_index_alone_and_fills_its_range(pack: ClipPack) -> None:
    pairs = FramePairs(pack, 0.3, max_gap_s=0.6)
    clip, frame = pairs.places(np.arange(len(pairs)))
    np.testing.assert_array_equal(clip_of(frame[:, 1]), clip)
    gap_s = (frame[:, 1] - frame[:, 0]) / np.array(RATES_HZ)[clip]
    assert (gap_s.min(), gap_s.max()) == (0.3, 0.6)
    shuffled = np.random.default_rng(0).permutation(len(pairs))
    np.testing.assert_array_equal(FramePairs(pack, 0.3, 0.6).places(shuffled)[1], frame[shuffled])
    first = FramePairs(pack, 0.3).places(np.arange(len(pairs)))[1][:, 0]
    np.testing.assert_array_equal(frame[:, 0], first)


def test_drawn_gaps_are_even_over_their_range(tmp_path: Path) -> None:
    writer = ClipPackWriter(tmp_path / "long", 1)
    writer.add(Clip(name="a", source="t", rate_hz=10), np.zeros((4000, 1, 1, 3), np.uint8))
    _, frame = FramePairs(writer.close(), 0.1, 0.4).places(np.arange(3900))
    counts = np.bincount(frame[:, 1] - frame[:, 0])[1:]
    assert counts.shape == (4,) and np.abs(counts / 975 - 1).max() < 0.1


@pytest.mark.parametrize("index", [-1, 31, 10_000])
def test_a_pair_beyond_the_last_is_an_error(pack: ClipPack, index: int) -> None:
    with pytest.raises(IndexError, match="of 31"):
        FramePairs(pack, 0.5).batch([0, index])


@pytest.mark.parametrize(
    ("gap_s", "max_gap_s", "message"),
    [(0, None, "gap_s is 0"), (0.5, 0.4, "max_gap_s 0.4"), (0.04, None, "half a frame"), (9, None, "no two frames")],
)
def test_a_gap_that_no_pair_can_have_is_refused(
    pack: ClipPack, gap_s: float, max_gap_s: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FramePairs(pack, gap_s, max_gap_s)
