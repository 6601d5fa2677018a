"""The commands that break a service report what its robots noticed: nothing, but what the break itself allows."""

from __future__ import annotations

import importlib
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
    status = main([*command, "--policy", str(toy_checkpoint), "--json", str(written)])
    result = json.loads(written.read_text())
    assert status == (1 if result["missed_goals"] else 0)
    return result


def test_swaps_under_load_lose_no_request_and_mix_no_revisions(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "swap", "--swaps", "3")
    assert (result["swaps"], result["failed"], result["wrong_revision"]) == (3, 0, 0), result
    slowest = [each["latency_ms"] for each in result["slowest"]]
    assert slowest == sorted(slowest, reverse=True) and slowest[0] == result["latency_max_ms"]
    assert all(0 <= each["swap"] <= 3 for each in result["slowest"]), result["slowest"]
    assert result["requests"] > 0
    assert result["latency_max_ms"] >= result["latency_p50_ms"] > 0


def test_kills_leave_typed_errors_in_time_and_an_intact_registry(toy_checkpoint, tmp_path):
    result = chaos(toy_checkpoint, tmp_path, "kill", "--kills", "2")
    assert result["kills"] == {"gateway": 1, "database": 1}
    assert result["registry_intact"] is True
    assert (result["late"], result["wrong_revision"]) == (0, 0), result
    assert set(result["typed_errors"]) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"} and not result["untyped_errors"], result
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
    # What an operator finds in the log, not what a metric might have told.
    assert (result["shadow_alert"], result["shadow_alert_event"]) == (True, "shadow diverges"), result


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

    def forgetful(self, request, *, timeout_s, **others):
        return answer(self, request, timeout_s=None, **others)

    monkeypatch.setattr(ChunkAnswerer, "answer", forgetful)
    result = chaos(toy_checkpoint, tmp_path, "deadline", "--rounds", "1", "--deadline-s", "0.3", backend="")
    assert (result["reached_after_first"], result["expired"], result["late"]) == (2, 0, 2), result


def test_a_goal_that_is_met_exits_0_and_one_that_is_missed_exits_1_and_says_which(
    toy_checkpoint, tmp_path, monkeypatch, capsys
):
    from service.chaos import deadline

    arguments = ["--log-level", "warning", "chaos", "deadline", "--rounds", "1", "--robots", "2", "--deadline-s", "0.3"]
    assert main([*arguments, "--policy", str(toy_checkpoint)]) == 0
    assert "goal missed" not in capsys.readouterr().err
    monkeypatch.setattr(deadline, "_LATE_S", -60.0)
    assert main([*arguments, "--policy", str(toy_checkpoint)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("goal missed: 2 answers came late") and "ended as EXPIRED" in said.out


RESULTS: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, str]]]] = {
    # What a run that met its goal says, and for each figure one that misses it.
    "swap": (
        {"failed": 0, "failures": {}, "wrong_revision": 0, "wrong_revision_examples": [], "latency_max_over_p50": 4.0},
        {
            "failed": (1, "1 requests failed"),
            "wrong_revision": (2, "2 answers of a wrong revision"),
            "latency_max_over_p50": (4.1, "4.1 times p50, at most 4"),
        },
    ),
    "kill": (
        {
            "recovered": True, "typed_errors": {"UNAVAILABLE": 9}, "untyped_errors": {}, "late": 0,
            "wrong_revision": 0, "registry_intact": True,
        },
        {
            "recovered": (False, "no chunk for 120 s"),
            "typed_errors": ({"UNKNOWN": 1}, "tell a robot nothing: {'UNKNOWN': 1}"),
            "untyped_errors": ({"DEADLINE_EXCEEDED": 1}, "did not give itself: {'DEADLINE_EXCEEDED': 1}"),
            "late": (1, "late is 1"),
            "wrong_revision": (1, "wrong_revision is 1"),
            "registry_intact": (False, "the registry is not as it was"),
        },
    ),
    "load": (
        {"attempts": {"NaN weights": {"error": ""}}, "not_as_expected": [], "failed": 0, "wrong_revision": 0},
        {
            "not_as_expected": (["NaN weights"], "NaN weights: promoted"),
            "failed": (3, "failed is 3"),
            "wrong_revision": (1, "wrong_revision is 1"),
        },
    ),
    "canary": (
        {
            "within_interval": True, "canary_episodes": 40, "interval_low": 29, "interval_high": 51, "failed": 0,
            "split_episodes_or_wrong_answers": 0, "shadow_failed": 0, "shadow_changed_answers": 0, "shadow_alert": True,
        },
        {
            "within_interval": (False, "expected 29 to 51"),
            "failed": (1, "failed is 1"),
            "split_episodes_or_wrong_answers": (1, "split_episodes_or_wrong_answers is 1"),
            "shadow_failed": (1, "shadow_failed is 1"),
            "shadow_changed_answers": (1, "shadow_changed_answers is 1"),
            "shadow_alert": (False, "no alert"),
        },
    ),
    "deadline": (
        {
            "requests": 6, "reached_after_first": 0, "expired": 6, "reasons": {"EXPIRED": 6}, "late": 0,
            "worst_late_ms": 1.0,
        },
        {
            "reached_after_first": (1, "1 expired requests reached the model"),
            "expired": (5, "of 6 requests 5"),
            "late": (1, "1 answers came late"),
        },
    ),
    "fairness": (
        {"ratio": 1.2, "steady_failures": {}},
        {"ratio": (1.21, "1.21 times"), "steady_failures": ({"OVERLOADED": 1}, "{'OVERLOADED': 1}")},
    ),
    "fuzz": (
        {"crashes": 0, "hangs": 0, "untyped": 0, "valid_refused": 0, "rss_growth": 0.05},
        {
            "crashes": (1, "crashes is 1"),
            "hangs": (1, "hangs is 1"),
            "untyped": (1, "untyped is 1"),
            "valid_refused": (1, "valid_refused is 1"),
            "rss_growth": (0.06, "grew by 6.0%"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RESULTS)
def test_every_figure_of_a_goal_can_miss_it(what, subtests):
    missed_goals = importlib.import_module(f"service.chaos.{what}").missed_goals
    met, missing = RESULTS[what]
    assert missed_goals(met) == []
    for name, (value, said) in missing.items():
        with subtests.test(figure=name):
            (missed,) = missed_goals(met | {name: value})
            assert said in missed
    if what == "fuzz":
        assert missed_goals(met | {"rss_growth": None}) == ["resident memory is not known, at most 5%"]


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
