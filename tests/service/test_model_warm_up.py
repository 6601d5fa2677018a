"""What a model has computed before any robot asks, and what the bench of its ways of computing says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from policy.checkpoint import read_checkpoint
from policy.policy import Policy
from service.bench.request_parts import BATCH_SIZES, RequestPartsSettings, format_request_parts, measure_request_parts
from service.inference import load_policy
from service.model_settings import ModelSettings


def warmed(toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, *, max_inference_delay: int) -> list[tuple[int, str]]:
    """(batch size, way) of every call that loading makes after the probe, of a toy as if trained for a delay."""
    calls: list[tuple[int, str]] = []

    class Watched(Policy):
        def predict_chunk(self, batch):
            chunking = batch[0].real_time_chunking
            calls.append((len(batch), chunking.method if chunking else "plain"))
            return super().predict_chunk(batch)

        @classmethod
        def from_checkpoint(cls, directory, **settings):
            parts = read_checkpoint(directory)
            parts.vla.config = replace(parts.vla.config, max_inference_delay=max_inference_delay)
            return cls(vla=parts.vla, specs=parts.specs, statistics=parts.statistics, manifest={}, revision="")

    monkeypatch.setattr("service.inference.Policy", Watched)
    load_policy(toy_checkpoint, device="cpu", dtype="fp32", largest_batch=2)
    return calls


def test_every_way_that_a_model_has_is_computed_once_at_every_size_of_batch(
    toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for delay, ways in ((0, ["plain", "guidance"]), (3, ["plain", "guidance", "prefix"])):
        calls = warmed(toy_checkpoint, monkeypatch, max_inference_delay=delay)
        assert calls == [(size, way) for size in (1, 2) for way in ways]


def test_the_bench_compares_each_option_with_a_plain_chunk(toy_checkpoint: Path) -> None:
    settings = RequestPartsSettings(checkpoint=toy_checkpoint, size="tiny", rounds=2, model=ModelSettings())
    result = measure_request_parts(settings)
    assert result["size"] == "tiny"
    found = [(row["way"], row["batch_size"]) for row in result["rows"]]
    assert found == [(way, size) for size in BATCH_SIZES for way in ("plain", "history", "guidance", "prefix")]
    for row in result["rows"]:
        low, high = row["ratio_interval"]
        assert row["p50_ms"] > 0 and low <= row["ratio"] <= high
        if row["way"] == "plain":
            assert (row["ratio"], row["added_ms"]) == (1.0, 0.0)
    assert not result["trained_for_a_prefix"]
    table = format_request_parts(result)
    assert len(table.splitlines()) == 2 + len(found)
    assert "tiny untrained, 2 rounds" in table and "weights not trained for a prefix" in table
