"""The commands that break a service report what its robots noticed: nothing, but what the break itself allows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.__main__ import main


def chaos(toy_checkpoint: Path, tmp_path: Path, *arguments: str, backend: str = "local") -> dict[str, Any]:
    written = tmp_path / "result.json"
    command = ["--log-level", "warning", "chaos", *arguments, "--robots", "2"]
    command += ["--backend", backend] if backend else []
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


def test_before_a_model_that_is_too_slow_all_expire_in_time_and_none_reaches_it(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "deadline", "--rounds", "3", "--deadline-s", "0.3", backend="")
    assert (result["requests"], result["expired"], result["reached_after_first"]) == (6, 6, 0), result
    # Half a second for a slow machine.
    assert result["worst_late_ms"] < 500


def test_a_gateway_that_forgets_deadlines_is_reported(toy_checkpoint, tmp_path, monkeypatch):
    from service.gateway.answers import ChunkAnswerer

    answer = ChunkAnswerer.answer

    def forgetful(self, request, *, timeout_s, caller=""):
        return answer(self, request, timeout_s=None, caller=caller)

    monkeypatch.setattr(ChunkAnswerer, "answer", forgetful)
    result = chaos(toy_checkpoint, tmp_path, "deadline", "--rounds", "1", "--deadline-s", "0.3", backend="")
    assert (result["reached_after_first"], result["expired"], result["late"]) == (2, 0, 2), result


def test_a_fast_robot_supersedes_itself_and_the_others_get_all_their_chunks(toy_checkpoint, tmp_path):
    arguments = ("--rounds", "1", "--block-s", "0.6", "--rate-hz", "6", "--max-batch-size", "1")
    result = chaos(toy_checkpoint, tmp_path, "fairness", *arguments)
    assert (result["blocks"], result["steady_failures"]) == (2, {})
    assert result["superseded"] > 0, result
    assert 0 < result["service_p99_alone_ms"] < result["p99_alone_ms"]
    assert set(result["fast_requests"]) <= {"OK", "SUPERSEDED"}, result
    assert result["ratio_low"] <= result["ratio"] <= result["ratio_high"]
    assert result["ratio"] == pytest.approx(result["p99_beside_ms"] / result["p99_alone_ms"])


def test_malformed_requests_on_both_wires_are_answered_each(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "fuzz", "--requests", "600")
    assert (result["requests"], result["valid_requests"], result["valid_refused"]) == (600, 12, 0), result
    assert (result["crashes"], result["hangs"], result["untyped"]) == (0, 0, 0), result
    for wire in ("grpc", "openpi"):
        assert set(result["statuses"][wire]) <= {"OK", "DONE", "INVALID_ARGUMENT", "NOT_FOUND"}, result
        assert result["statuses"][wire]["INVALID_ARGUMENT"] > 150
    assert result["rss_end_bytes"] > 0 and result["rss_after_warm_up_bytes"] > 0


def test_a_service_that_dies_under_malformed_requests_is_reported(toy_checkpoint, tmp_path, monkeypatch):
    """Killed from outside, for no malformed request does it."""
    from service.bench.served import Served, served
    from service.chaos import fuzz

    started: list[Served] = []

    @contextmanager
    def watched(*arguments, **options) -> Iterator[Served]:
        with served(*arguments, **options) as service:
            started.append(service)
            yield service

    def killing(generator, request, *, mutated=fuzz.mutated_request):
        if request.request_id == "149":
            started[0].process.kill()
        return mutated(generator, request)

    monkeypatch.setattr(fuzz, "served", watched)
    monkeypatch.setattr(fuzz, "mutated_request", killing)
    result = chaos(toy_checkpoint, tmp_path, "fuzz", "--requests", "600")
    assert (result["crashes"], result["rss_growth"]) == (1, None)
    assert result["untyped"] > 0, result
    assert result["requests"] < 600


def test_the_same_seed_makes_the_same_malformed_requests(toy_checkpoint):
    from premotor.v1 import policy_pb2
    from service.chaos.mutations import mutated_frame, mutated_request, random_metadata

    request = policy_pb2.PredictChunkRequest(policy="tabletop", robot_id="robot")
    request.observation.images["front"].compressed = b"\xff\xd8\xff" + bytes(40)
    message = {"observation/front": np.zeros((4, 4, 3), np.uint8), "prompt": "lift"}

    def make(seed: int) -> list[object]:
        generator = random.Random(seed)
        frames = [mutated_frame(generator, message) for _ in range(200)]
        return [*frames, *(mutated_request(generator, request) for _ in range(200)), random_metadata(generator)]

    assert make(1) == make(1) != make(2)
    # What they start from is left as it was.
    assert request.policy == "tabletop" and set(message) == {"observation/front", "prompt"}


def test_the_interval_of_a_ratio_is_narrow_where_all_rounds_agree_and_wide_where_they_do_not():
    from service.chaos.fairness import ratio_interval

    steady = [np.full(100, 10.0)] * 6
    assert ratio_interval(steady, [np.full(100, 15.0)] * 6) == (1.5, 1.5)
    low, high = ratio_interval(steady, [np.full(100, level) for level in (10.0, 11.0, 12.0, 13.0, 14.0, 30.0)])
    assert low < 1.5 < high
