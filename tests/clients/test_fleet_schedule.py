"""Robots' times: one question a period, jittered, a phase each, the same for one seed."""

from __future__ import annotations

import numpy as np
import pytest

from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.fleet.command import parse_cpus
from premotor.client.fleet.questions import NUM_VIEWS, Questions, with_frames
from premotor.client.fleet.schedule import question_times_s
from premotor.client.fleet.settings import FleetSettings, parse_cameras, parse_duration_s
from premotor.client.identity import TlsOptions

STATE = Group(
    name="arm",
    dim=2,
    kind="joint_position",
    unit="rad",
    representation="absolute",
    lower_limit=(-1.0, 0.0),
    upper_limit=(1.0, 0.5),
)
BODY = Embodiment(
    name="arm",
    cameras=(Camera(name="front", height=16, width=16),),
    state=(STATE,),
    action=(STATE,),
    control_rate_hz=10.0,
)
POLICY = PolicyDescription(
    name="p",
    revision="r",
    variant="",
    embodiments=(BODY,),
    history_steps=2,
    action_horizon=10,
    execution_horizon=5,
    num_inference_steps=4,
    max_inference_steps=8,
    schema_digest="d",
)


def times_s(robot: int, **changes: float) -> np.ndarray:
    return question_times_s(
        **{"robot": robot, "num_robots": 8, "rate_hz": 2.0, "duration_s": 30.0, "jitter": 0.1, "seed": 0, **changes}
    )


def settings(**changes: object) -> FleetSettings:
    defaults = {"endpoint": "premotor", "addresses": ("x:1",), "description": POLICY, "embodiment": BODY}
    return FleetSettings(**{**defaults, "control_rate_hz": 10.0, **changes})


def test_a_robot_asks_once_a_period_give_or_take_the_jitter() -> None:
    for robot in range(8):
        found = times_s(robot)
        assert len(found) in (59, 60)
        assert np.diff(found).min() >= 0.4 and np.diff(found).max() <= 0.6
        assert found.min() >= 0 and found.max() < 30.0


def test_robots_are_spread_over_the_period() -> None:
    first = [times_s(robot, jitter=0.0)[0] for robot in range(8)]
    assert [int(8 * 2.0 * time_s) for time_s in first] == list(range(8))


def test_one_seed_gives_the_same_times_and_another_does_not() -> None:
    assert np.array_equal(times_s(3), times_s(3))
    assert not np.array_equal(times_s(3), times_s(3, seed=1))


def test_no_two_questions_are_alike_and_all_lie_within_the_limits() -> None:
    questions = Questions(POLICY, BODY, image_encoding="raw", with_history=True, seed=0)
    asked = [questions.question(robot, number) for robot in range(4) for number in range(2 * NUM_VIEWS)]
    assert len({(question.seed, question.state.tobytes()) for question in asked}) == len(asked)
    assert len({question.view for question in asked}) == NUM_VIEWS
    for question in asked:
        assert (question.state >= [-1.0, 0.0]).all() and (question.state <= [1.0, 0.5]).all()
        assert question.state.dtype == np.float32
        assert question.history is not None and len(question.history) == 2


def test_frames_have_the_size_that_was_asked_for() -> None:
    body = with_frames(BODY, 1, 24, 32)
    (frame,) = Questions(POLICY, body, image_encoding="raw", with_history=False, seed=0).question(0, 0).images.values()
    assert isinstance(frame, np.ndarray) and frame.shape == (24, 32, 3)
    with pytest.raises(ValueError, match="2 cameras came, 'arm' has 1"):
        with_frames(BODY, 2, 24, 32)


def test_a_deadline_is_when_the_chunk_before_runs_out() -> None:
    assert settings(rate_hz=2.0).deadline_s == pytest.approx(0.5)
    assert settings(rate_hz=2.0).most_supplied_share == 1.0
    # A chunk that does not last a period leaves a gap whatever the server does.
    assert settings(rate_hz=0.5).deadline_s == pytest.approx(1.0)
    assert settings(rate_hz=0.5).most_supplied_share == pytest.approx(0.5)


def test_robots_give_up_after_a_chunk_only_where_the_wire_tells_the_server_so() -> None:
    assert settings().answer_timeout_s == settings(endpoint="premotor-unary").answer_timeout_s == pytest.approx(1.0)
    for waits in (settings(endpoint="openpi"), settings(endpoint="triton", triton_model="m")):
        assert waits.answer_timeout_s == 30.0
    assert settings(endpoint="openpi", timeout_s=0.5).answer_timeout_s == 0.5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_robots": 0}, "num_robots is 0"),
        ({"jitter": 0.5}, "jitter is 0.5"),
        ({"settle_s": 60.0}, "settle_s"),
        ({"network": "moon"}, "none, lan, wifi, wan"),
        ({"endpoint": "openpi", "image_encoding": "jpeg"}, "raw frames only"),
        ({"endpoint": "lerobot"}, "1 addresses came for 16 robots"),
        ({"endpoint": "triton"}, "needs the name of a model"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_was_expected(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**wrong)


def test_texts_of_the_command_line() -> None:
    assert [parse_duration_s(text) for text in ("60s", "250ms", "2m", "1.5")] == [60.0, 0.25, 120.0, 1.5]
    assert [parse_cameras(text) for text in ("2x224", "3x480x640")] == [(2, 224, 224), (3, 480, 640)]
    assert parse_cpus("0,2-3") == (0, 2, 3)
    assert parse_cpus("none") == ()
    for parse, text in (
        (parse_duration_s, "0s"),
        (parse_duration_s, "soon"),
        (parse_cameras, "2x0"),
        (parse_cpus, "a"),
    ):
        with pytest.raises(ValueError, match=repr(text)):
            parse(text)


def test_a_question_is_described_by_what_it_holds() -> None:
    questions = Questions(POLICY, with_frames(BODY, 1, 24, 32), image_encoding="raw", with_history=False, seed=0)
    asked = questions.question(0, 0)
    assert questions.describe() == {
        "embodiment": "arm",
        "cameras": ["front 32x24"],
        "frame_bytes": 24 * 32 * 3,
        "state_bytes": 8,
        "instruction_bytes": len(asked.instruction.encode()),
    }


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"endpoint": "lerobot", "tls": TlsOptions()}, "lerobot is not encrypted"),
        ({"endpoint": "triton", "triton_model": "m", "tls": TlsOptions()}, "triton is not encrypted"),
        ({"endpoint": "triton", "triton_model": "m", "token": "t"}, "triton carries no token"),
        (
            {"endpoint": "openpi", "token": "t", "addresses": ("127.0.0.1:1", "remote:8000")},
            "to remote:8000 unencrypted",
        ),
        (
            {"endpoint": "premotor", "token": "t", "addresses": ("remote:1",), "network": "wan"},
            "to remote:1 unencrypted",
        ),
    ],
)
def test_a_wire_that_would_not_keep_what_robots_show_is_refused(shown: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(num_robots=1, **shown)


def test_robots_of_openpi_show_no_certificate(certificates) -> None:
    own = TlsOptions(certificate=certificates.client.read_bytes(), key=certificates.client_key.read_bytes())
    assert settings(tls=own, token="t", addresses=("remote:1",)).tls is own
    with pytest.raises(ValueError, match="openpi shows no certificate"):
        settings(endpoint="openpi", tls=own)
