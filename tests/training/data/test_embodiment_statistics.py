from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policy.embodiment import EmbodimentSpec
from policy.normalization import Normalizer
from training.data.pack import Pack
from training.data.statistics import EmbodimentStatistics, RunningStatistics, embodiment_statistics
from training.data.windows import gather_windows

floats = st.floats(-1e6, 1e6, width=32)
rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=floats)


def of(*parts: np.ndarray, max_distinct: int = 2**20) -> RunningStatistics:
    statistics = RunningStatistics(parts[0].shape[1], max_distinct=max_distinct)
    for part in parts:
        statistics.add(part)
    return statistics


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=rows)
def test_every_number_equals_numpys(values: np.ndarray):
    found = of(values).to_json()
    wide = values.astype(np.float64)
    scale = np.abs(wide).max() + 1e-30
    np.testing.assert_array_equal(found["min"], wide.min(0))
    np.testing.assert_array_equal(found["max"], wide.max(0))
    np.testing.assert_allclose(found["mean"], wide.mean(0), atol=1e-12 * scale)
    np.testing.assert_allclose(found["std"], wide.std(0), atol=1e-9 * scale)
    np.testing.assert_allclose(found["q01"], np.quantile(wide, 0.01, axis=0), atol=1e-12 * scale)
    np.testing.assert_allclose(found["q99"], np.quantile(wide, 0.99, axis=0), atol=1e-12 * scale)
    assert found["count"] == [len(values)] * 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(rows, min_size=2, max_size=5), data=st.data())
def test_merging_in_any_order_equals_one_pass_over_everything(parts: list[np.ndarray], data: st.DataObject):
    whole = of(np.concatenate(parts)).to_json()
    order = data.draw(st.permutations(range(len(parts))))
    merged = RunningStatistics(2)
    for index in order:
        merged.merge(of(parts[index]))
    found = merged.to_json()
    for name in ("min", "max", "q01", "q99", "count"):
        assert found[name] == whole[name]
    scale = max(np.abs(part).max() for part in parts) + 1e-30
    np.testing.assert_allclose(found["mean"], whole["mean"], atol=1e-9 * scale)
    np.testing.assert_allclose(found["std"], whole["std"], atol=1e-6 * scale)


def test_quantiles_of_merged_parts_are_not_the_average_of_the_parts_quantiles():
    """Two tasks far apart: averaging q99 gives 50.5, the truth is near 101."""
    low, high = (np.linspace(start, start + 1, 1001, dtype=np.float32)[:, None] for start in (0.0, 100.0))
    merged = of(low)
    merged.merge(of(high))
    assert merged.to_json()["q99"][0] == pytest.approx(np.quantile(np.concatenate([low, high]), 0.99), rel=1e-6)
    assert merged.to_json()["q99"][0] > 100.9


def test_too_many_distinct_values_coarsen_by_a_bounded_relative_error():
    values = np.random.default_rng(0).normal(size=(20_000, 1)).astype(np.float32)
    values = np.concatenate([values, -values])
    found = of(*np.split(values, 16), max_distinct=4096).to_json()
    for name, quantile in (("q01", 0.01), ("q99", 0.99)):
        assert found[name][0] == pytest.approx(np.quantile(values, quantile), rel=5e-3)
    assert found["q01"] != [np.quantile(values, 0.01)]


def test_coarsened_counts_do_not_depend_on_the_order_of_merging():
    parts = np.split(np.random.default_rng(1).normal(size=(8000, 2)).astype(np.float32), 8)
    forward, backward = of(*parts, max_distinct=512), RunningStatistics(2, max_distinct=512)
    for part in reversed(parts):
        backward.merge(of(part, max_distinct=512))
    assert forward.to_json()["q01"] == backward.to_json()["q01"]
    assert forward.to_json()["q99"] == backward.to_json()["q99"]


def test_zeros_of_either_sign_and_constants_are_exact():
    values = np.array([[0.0, 3.5], [-0.0, 3.5], [0.0, 3.5]], np.float32)
    found = of(values).to_json()
    assert found["q01"] == [0.0, 3.5] and found["q99"] == [0.0, 3.5] and found["std"] == [0.0, 0.0]


def test_a_large_offset_does_not_cost_the_standard_deviation():
    values = (1e4 + np.random.default_rng(2).integers(0, 2, (100_000, 1))).astype(np.float32)
    found = of(*np.split(values, 100)).to_json()
    np.testing.assert_allclose(found["std"], values.astype(np.float64).std(0), rtol=1e-10)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((3, 4), np.float32), r"\(3, 4\), expected float32 \[n, 2\]"),
        (np.zeros((3, 2)), "float64"),
        (np.array([[0, 0], [0, np.inf]], np.float32), "row 1 of 2 is not finite"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(bad: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        RunningStatistics(2).add(bad)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        RunningStatistics(2).to_json()


def random_pack(pack_of: Callable[..., Pack], lengths: list[int], seed: int, **fields: object) -> Pack:
    rng = np.random.default_rng(seed)
    state, action = (rng.normal(size=(sum(lengths), 3)).astype(np.float32) for _ in range(2))
    return pack_of(state, action, lengths, **fields)


def relative_by_hand(pack: Pack, horizon: int) -> np.ndarray:
    """a_{t+i} - s_t of the joints for every real step of every chunk; the gripper is state 0 and action 2."""
    found = []
    for start, length in zip(pack.episode_start.tolist(), pack.episode_length.tolist(), strict=True):
        for t in range(start, start + length):
            for i in range(min(horizon, start + length - t)):
                found.append(pack.action[t + i, :2] - pack.state[t, 1:])
    return np.array(found)


def test_actions_are_counted_as_the_model_sees_them(pack_of: Callable[..., Pack]):
    packs = [random_pack(pack_of, [5, 9, 1], 0), random_pack(pack_of, [12], 1)]
    found = embodiment_statistics(packs, horizon=4)["toy"]
    relative = np.concatenate([relative_by_hand(pack, 4) for pack in packs]).astype(np.float64)
    gripper = np.concatenate([pack.action[:, 2] for pack in packs])
    state = np.concatenate([pack.state for pack in packs]).astype(np.float64)
    assert found["action"]["count"] == [len(relative), len(relative), len(gripper)]
    assert found["action"]["min"] == [*relative.min(0).tolist(), float(gripper.min())]
    np.testing.assert_allclose(found["action"]["q99"][:2], np.quantile(relative, 0.99, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["action"]["mean"][:2], relative.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found["state"]["std"], state.std(0), rtol=1e-10)
    assert found["state"]["count"] == [27] * 3


def test_relative_statistics_are_those_of_what_the_normalizer_meets(pack_of: Callable[..., Pack], spec: EmbodimentSpec):
    """Min-max statistics by our count bring every real step of every window to exactly [-1, 1]."""
    spec = EmbodimentSpec.from_json(json.loads(json.dumps(spec.to_json()).replace('"q01_q99"', '"min_max"')))
    pack = random_pack(pack_of, [9, 14], 3, spec=spec)
    normalizer = Normalizer(spec, embodiment_statistics([pack], horizon=5)["toy"])
    windows = gather_windows(pack, np.arange(23), horizon=5, history_steps=0)
    states = torch.from_numpy(windows.states[:, 0])
    normalized = normalizer.normalize_action(torch.from_numpy(windows.actions), states)[windows.chunk_mask]
    np.testing.assert_allclose(normalized.numpy().min(0), -1, atol=1e-5)
    np.testing.assert_allclose(normalized.numpy().max(0), 1, atol=1e-5)


def test_partial_statistics_merge_to_those_of_all_packs(pack_of: Callable[..., Pack], spec: EmbodimentSpec):
    packs = [random_pack(pack_of, [20, 3], seed) for seed in range(3)]
    merged = EmbodimentStatistics(spec, horizon=6)
    for pack in packs:
        part = EmbodimentStatistics(spec, horizon=6)
        part.add(pack)
        merged.merge(part)
    found, whole = merged.to_json(), embodiment_statistics(packs, horizon=6)["toy"]
    for side in ("state", "action"):
        for name in whole[side]:
            np.testing.assert_allclose(found[side][name], whole[side][name], rtol=1e-9)


def test_embodiments_are_never_merged(pack_of: Callable[..., Pack], spec: EmbodimentSpec):
    other = replace(spec, name="other")
    packs = [random_pack(pack_of, [9], 0), random_pack(pack_of, [9], 1, spec=other)]
    found = embodiment_statistics(packs, horizon=2)
    assert list(found) == ["toy", "other"]
    assert found["toy"] == embodiment_statistics(packs[:1], horizon=2)["toy"]
    same_name = replace(spec, control_rate_hz=40.0)
    with pytest.raises(ValueError, match="another embodiment"):
        embodiment_statistics([packs[0], random_pack(pack_of, [9], 1, spec=same_name)], horizon=2)
    partial = EmbodimentStatistics(spec, horizon=2)
    with pytest.raises(ValueError, match="spec or horizon differ"):
        partial.merge(EmbodimentStatistics(spec, horizon=3))
    with pytest.raises(ValueError, match="spec or horizon differ"):
        partial.merge(EmbodimentStatistics(other, horizon=2))


def test_statistics_are_json(pack_of: Callable[..., Pack]):
    found = embodiment_statistics([random_pack(pack_of, [9], 0)], horizon=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["toy"]["action"]) == {"mean", "std", "min", "max", "q01", "q99", "count"}
