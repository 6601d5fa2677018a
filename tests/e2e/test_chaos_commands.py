"""The commands that break a service report what its robots noticed: nothing, but what the break itself allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main


def chaos(toy_checkpoint: Path, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    written = tmp_path / "result.json"
    command = ["--log-level", "warning", "chaos", *arguments, "--robots", "2", "--backend", "local"]
    assert main([*command, "--policy", str(toy_checkpoint), "--json", str(written)]) == 0
    return json.loads(written.read_text())


def test_swaps_under_load_lose_no_request_and_mix_no_revisions(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "swap", "--swaps", "3")
    assert (result["swaps"], result["failed"], result["wrong_revision"]) == (3, 0, 0), result
    assert result["requests"] > 0
    assert result["latency_max_ms"] >= result["latency_p50_ms"] > 0


def test_kills_leave_typed_errors_in_time_and_an_intact_registry(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "kill", "--kills", "2")
    assert result["kills"] == {"gateway": 1, "database": 1}
    assert result["registry_intact"] is True
    assert (result["late"], result["wrong_revision"]) == (0, 0), result
    assert set(result["typed_errors"]) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, result
    # A robot that has its chunks from memory does not notice a database.
    assert result["longest_gap_s"]["database"] < 5.0


def test_checkpoints_that_must_be_refused_are_and_the_old_revision_answers_throughout(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "load")
    assert result["not_as_expected"] == [], result
    assert (result["failed"], result["wrong_revision"]) == (0, 0), result
    errors = {what: each["error"] for what, each in result["attempts"].items()}
    assert "sha256" in errors["flipped byte"]
    assert "tokenizer.json is missing" in errors["missing file"]
    assert "NaN" in errors["NaN weights"]
    assert "is off by" in errors["wrong probe"]
    assert "second copy takes about" in errors["too little memory"]
    assert errors["slow disk"] == ""


def test_a_canary_gets_its_share_and_a_broken_shadow_is_noticed_by_the_alert_alone(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "canary", "--episodes", "40")
    assert result["within_interval"], result
    assert (result["failed"], result["split_episodes_or_wrong_answers"], result["shadow_changed_answers"]) == (0, 0, 0)
    assert result["shadow_answered"] > 0
    assert result["shadow_alert"] is True


@pytest.mark.parametrize(("trials", "rate", "expected"), [(200, 0.2, (29, 51)), (10, 0.5, (2, 8)), (5, 0.0, (0, 0))])
def test_the_interval_is_the_binomial_s(trials, rate, expected):
    from service.chaos.canary import binomial_interval

    assert binomial_interval(trials, rate) == expected
