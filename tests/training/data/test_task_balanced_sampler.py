from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from training.data.sampler import TaskBalancedSampler

FRAMES = (50, 7, 400)
WEIGHTS = (1.0, 1.0, 2.0)


def pairs(batch: list[tuple[int, np.ndarray]]) -> list[tuple[int, int]]:
    return [(pack, int(frame)) for pack, frames in batch for frame in frames]


def walk(sampler: TaskBalancedSampler, pack: int, steps: range) -> list[int]:
    return [frame for step in steps for found, frame in pairs(sampler.batch(step)) if found == pack]


def test_a_step_depends_on_nothing_but_seed_and_step():
    used = TaskBalancedSampler(FRAMES, WEIGHTS, 16, 3)
    unbroken = [pairs(used.batch(step)) for step in range(60)]
    for step in (59, 0, 31, 32, 31):
        assert pairs(TaskBalancedSampler(FRAMES, WEIGHTS, 16, 3).batch(step)) == unbroken[step]
        assert pairs(used.batch(step)) == unbroken[step]


def test_another_process_draws_the_same_samples():
    code = (
        "from training.data.sampler import TaskBalancedSampler as S;"
        f"print([(p, f.tolist()) for p, f in S({FRAMES}, {WEIGHTS}, 16, 3).batch(5000)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    here = [(p, f.tolist()) for p, f in TaskBalancedSampler(FRAMES, WEIGHTS, 16, 3).batch(5000)]
    assert printed.strip() == str(here)


def test_seeds_differ():
    first, second = (pairs(TaskBalancedSampler(FRAMES, WEIGHTS, 16, seed).batch(0)) for seed in (0, 1))
    assert first != second


def test_every_batch_has_its_size_and_each_pack_its_share_to_within_one():
    sampler = TaskBalancedSampler((30, 30, 30, 30, 30), (1, 1, 1, 1, 1), 64, 0)
    for step in range(0, 3000, 7):
        counts = {pack: len(frames) for pack, frames in sampler.batch(step)}
        assert sum(counts.values()) == 64
        assert set(counts.values()) <= {12, 13}


@pytest.mark.parametrize("weights", [(1.0, 1.0, 2.0), (0.02, 0.9, 0.31), (3.0, 5.0, 7.0)])
def test_shares_follow_the_weights_not_the_sizes(weights: tuple[float, ...]):
    sampler = TaskBalancedSampler(FRAMES, weights, 6, 1)
    counts = Counter(pack for step in range(1024) for pack, _ in pairs(sampler.batch(step)))
    for pack, weight in enumerate(weights):
        assert counts[pack] / (1024 * 6) == pytest.approx(weight / sum(weights), abs=1 / 1024)


@pytest.mark.parametrize("pack", [0, 1, 2])
def test_each_epoch_of_a_pack_visits_every_frame_once_in_a_fresh_order(pack: int):
    """Across batch borders, across several epochs in one batch (7 frames), across the period of 1024 steps."""
    sampler = TaskBalancedSampler(FRAMES, WEIGHTS, 20, 5)
    drawn = walk(sampler, pack, range(1100))
    size = FRAMES[pack]
    epochs = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
    assert len(epochs) >= 13
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 0.9 * len(epochs)
    assert epochs[0] != list(range(size))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_out_the_global_batch_whatever_their_number(world_size: int):
    alone = TaskBalancedSampler(FRAMES, WEIGHTS, 12, 2)
    ranks = [TaskBalancedSampler(FRAMES, WEIGHTS, 12, 2, rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 1, 40, 1023, 1024):
        parts = [pairs(rank.batch(step)) for rank in ranks]
        assert all(len(part) == 12 // world_size for part in parts)
        for rank, part in enumerate(parts):
            assert part == pairs(alone.batch(step))[rank::world_size]


def test_a_pack_without_a_sample_in_a_batch_is_left_out():
    sampler = TaskBalancedSampler((5, 5), (1, 99), 4, 0)
    batches = [sampler.batch(step) for step in range(200)]
    assert any([pack for pack, _ in batch] == [1] for batch in batches)
    assert any(pack == 0 for batch in batches for pack, _ in batch)
    assert all(len(frames) for batch in batches for _, frames in batch)


def test_a_far_step_costs_no_walk_to_it():
    """2**40 steps could not be counted through; the position is a closed form."""
    batch = pairs(TaskBalancedSampler(FRAMES, WEIGHTS, 16, 3).batch(2**40))
    assert len(batch) == 16 and all(0 <= frame < FRAMES[pack] for pack, frame in batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (), 4, 0), "at least one pack"),
        (((5, 0), (1, 1), 4, 0), "one frame in each"),
        (((5, 5), (1,), 4, 0), "for 2 packs"),
        (((5, 5), (1, 0), 4, 0), "a positive one"),
        (((5, 5), (1, 1), 0, 0), "batch_size 0"),
        (((5, 5), (1, 1e-9), 4, 0), "without a frame"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        TaskBalancedSampler(*arguments)


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of the ranks"):
        TaskBalancedSampler((5,), (1,), 5, 0, rank=0, world_size=2)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TaskBalancedSampler((5,), (1,), 4, 0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="step is -1"):
        TaskBalancedSampler((5,), (1,), 4, 0).batch(-1)
