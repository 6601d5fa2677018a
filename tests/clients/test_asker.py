"""Each failure of a question has its own consequence for the next, and a gateway that came back is asked who it is."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from premotor.client import (
    BackOff,
    Chunk,
    DeadlineExceededError,
    FixRequestError,
    ObservationSupersededError,
    OutputViolationError,
    PolicyClient,
    ProtocolError,
    RetryableError,
    SchemaChangedError,
)
from premotor.client.asker import Asker
from premotor.client.asking import Answer, News, Question
from premotor.client.control_clock import MonotonicClock
from premotor.client.events import AskingStopped, Failed, Reconnected, SwapSeen
from premotor.v1 import policy_pb2

WAIT_S = 8.0
QUICK = BackOff(initial_s=0.01, max_s=0.05)


class Waits:
    """The monotonic clock, and how long was waited for what."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []
        self.ahead_s = 0.0
        self._clock = MonotonicClock()

    def now_s(self) -> float:
        return self._clock.now_s() + self.ahead_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits_s.append(timeout_s)
        return self._clock.wait(event, min(timeout_s, 0.02))


class Desk:
    """An asker at a gateway, and what it said."""

    def __init__(self, gateway: Any, arguments: dict, transport: Any, *, revision: str = "") -> None:
        self.gateway, self.arguments, self.clock = gateway, arguments, Waits()
        self.transport = transport
        self.num_connections = 0
        self.asker = Asker(
            self._connect,
            policy="tabletop",
            revision=revision,
            transport=transport,
            back_off=QUICK,
            generator=random.Random(0),
            clock=self.clock,
            handshake_timeout_s=2.0,
        )
        self.news: list[News] = []

    def _connect(self) -> PolicyClient:
        self.num_connections += 1
        return PolicyClient(self.gateway.address, timeout_s=2.0)

    def ask(self, instruction: str = "go", timeout_s: float = 2.0, **changed: Any) -> Any:
        """The outcome of one question, once the asker is free for another or has stopped."""
        now_s = self.clock.now_s()
        question = Question(
            owner=self,
            step=0,
            captured_s=now_s,
            expires_s=now_s + timeout_s,
            arguments={**self.arguments, "instruction": instruction, **changed},  # pyright: ignore
        )
        self.asker.ask(question)
        self.until(lambda: self.asker.is_free() or self.of(AskingStopped))
        return next(news.outcome for news in self.of(Answer) if news.question is question)

    def until(self, found: Callable[[], Any]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        never = threading.Event()
        while not found():
            assert time.monotonic() < deadline_s, self.news
            never.wait(0.002)
            self.news += self.asker.take()
        self.news += self.asker.take()

    def of(self, kind: type) -> list[Any]:
        return [news for news in self.news if isinstance(news, kind)]


@pytest.fixture(params=["stream", "unary"])
def desk(request: pytest.FixtureRequest, gateway, arguments) -> Iterator[Desk]:
    desk = Desk(gateway, arguments, request.param)
    desk.asker.open()
    yield desk
    desk.asker.close()


def reason(name: str) -> int:
    return policy_pb2.RequestError.Reason.Value(f"REASON_{name}")


def test_a_question_is_answered_and_the_asker_is_free_again(desk: Desk) -> None:
    assert desk.asker.is_free()
    chunk = desk.ask()
    assert isinstance(chunk, Chunk)
    np.testing.assert_array_equal(chunk.actions[0], desk.arguments["state"])
    assert len(desk.gateway.service.requests) == 1
    assert desk.num_connections == 1


def test_while_a_question_is_in_flight_it_is_not_free(gateway, arguments) -> None:
    desk = Desk(gateway, arguments, "unary")
    desk.asker.open()
    now_s = desk.clock.now_s()
    held = {**arguments, "instruction": "hold"}
    desk.asker.ask(Question(owner=desk, step=0, captured_s=now_s, expires_s=now_s + 5, arguments=held))  # pyright: ignore
    assert gateway.service.arrived.wait(WAIT_S)
    assert not desk.asker.is_free()
    gateway.service.release.set()
    desk.until(desk.asker.is_free)
    assert isinstance(desk.of(Answer)[0].outcome, Chunk)
    desk.asker.close()


def test_overload_is_waited_out_as_long_as_the_server_says_on_the_same_connection(desk: Desk) -> None:
    error = desk.ask("error RESOURCE_EXHAUSTED")
    assert isinstance(error, RetryableError)
    # The fake's retry delay; longer than the back-off.
    assert desk.clock.waits_s == [0.25]
    assert [failed.retry_delay_s for failed in desk.of(Failed)] == [0.25]
    assert isinstance(desk.ask(), Chunk)
    assert desk.num_connections == 1


def test_a_superseded_question_is_no_reason_to_wait(desk: Desk) -> None:
    assert isinstance(desk.ask(f"error ABORTED {reason('SUPERSEDED')}"), ObservationSupersededError)
    assert desk.clock.waits_s == []
    assert isinstance(desk.ask(), Chunk)


def test_a_chunk_that_broke_a_limit_is_reported_as_such_and_asked_for_again_after_a_while(desk: Desk) -> None:
    assert isinstance(desk.ask(f"error INTERNAL {reason('OUTPUT_VIOLATION')}"), OutputViolationError)
    assert len(desk.clock.waits_s) == 1
    assert isinstance(desk.ask(), Chunk)


def test_an_observation_that_is_too_old_is_not_sent(desk: Desk) -> None:
    assert isinstance(desk.ask(timeout_s=0.0), DeadlineExceededError)
    assert desk.gateway.service.requests == []
    assert desk.clock.waits_s == []


def told(desk: Desk) -> list[int]:
    return [request.num_underruns for request in desk.gateway.service.requests]


def test_underruns_of_a_question_that_nobody_read_are_told_with_the_next(desk: Desk) -> None:
    desk.ask(timeout_s=0.0, num_underruns=3)
    desk.ask(num_underruns=1)
    desk.ask("plain UNAVAILABLE" if desk.transport == "unary" else "break", num_underruns=5)
    desk.ask(num_underruns=2)
    desk.ask(num_underruns=0)
    assert told(desk) == [4, 5, 7, 0]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("DEADLINE_EXCEEDED", "EXPIRED"),
        ("RESOURCE_EXHAUSTED", "OVERLOADED"),
        ("UNAVAILABLE", "UNAVAILABLE"),
        ("ABORTED", "SUPERSEDED"),
    ],
)
def test_underruns_that_the_service_has_read_are_not_told_again(desk: Desk, code: str, name: str) -> None:
    desk.ask(f"error {code} {reason(name)}", num_underruns=3)
    desk.ask(num_underruns=1)
    assert told(desk) == [3, 1]


def test_underruns_that_a_draining_gateway_did_not_look_at_are_told_to_the_next(desk: Desk) -> None:
    desk.ask(f"error UNAVAILABLE {reason('DRAINING')}", num_underruns=3)
    desk.ask(num_underruns=1)
    assert told(desk) == [3, 4]


@pytest.mark.parametrize("answered_late", [True, False])
def test_a_time_out_is_told_again_unless_the_stream_says_late_that_it_was_read(
    gateway, arguments, answered_late: bool
) -> None:
    desk = Desk(gateway, arguments, "stream")
    desk.asker.open()
    error = desk.ask("hold" if answered_late else "lose", timeout_s=0.05, num_underruns=3)
    assert isinstance(error, DeadlineExceededError)
    gateway.service.release.set()
    stream = desk.asker._stream
    assert stream is not None
    if answered_late:
        desk.until(lambda: not stream.is_unanswered(error.request_id))
    desk.ask(num_underruns=1)
    desk.ask(num_underruns=0)
    desk.asker.close()
    assert told(desk) == [3, 1, 0 if answered_late else 3]


def test_more_underruns_than_a_request_may_say_are_told_in_parts(desk: Desk) -> None:
    desk.ask(timeout_s=0.0, num_underruns=900_000)
    for num_underruns in (300_000, 0):
        desk.ask(num_underruns=num_underruns)
    assert told(desk) == [1_000_000, 200_000]


def test_two_time_outs_in_a_row_are_a_lost_connection(desk: Desk) -> None:
    desk.ask(timeout_s=0.0)
    assert desk.num_connections == 1
    desk.ask(timeout_s=0.0)
    assert desk.num_connections == 2
    assert len(desk.of(Reconnected)) == 1
    assert isinstance(desk.ask(), Chunk)


def test_a_gateway_that_says_that_it_was_too_late_is_not_a_lost_connection(desk: Desk) -> None:
    for _ in range(3):
        assert isinstance(desk.ask(f"error DEADLINE_EXCEEDED {reason('EXPIRED')}"), DeadlineExceededError)
    assert (desk.num_connections, desk.of(Reconnected)) == (1, [])


def test_a_gateway_that_restarts_is_connected_to_again_with_a_fresh_handshake(desk: Desk) -> None:
    assert isinstance(desk.ask(), Chunk)
    desk.gateway.stop()
    gone = desk.clock.now_s()
    question = Question(owner=desk, step=0, captured_s=gone, expires_s=gone + 1, arguments=desk.arguments)  # pyright: ignore
    desk.asker.ask(question)
    desk.until(lambda: len(desk.of(Failed)) >= 3)
    assert not desk.asker.is_free()
    desk.gateway.start()
    desk.until(desk.asker.is_free)
    (again,) = desk.of(Reconnected)
    assert again.num_attempts >= 2 and again.away_s > 0
    assert isinstance(desk.ask(), Chunk)
    # Back-off: each wait at most twice the one before, never beyond its longest.
    assert max(desk.clock.waits_s) <= QUICK.max_s
    assert desk.clock.waits_s[0] < desk.clock.waits_s[2]


def test_a_client_that_was_connected_since_says_what_the_episode_is_on(desk: Desk) -> None:
    desk.ask()
    desk.ask("error UNAVAILABLE")
    desk.until(lambda: desk.of(Reconnected))
    desk.gateway.service.policy.revision = "another"
    for episode_id in ("episode-1", "episode-1", "episode-2"):
        desk.ask(episode_id=episode_id)
    assert desk.num_connections == 2
    said = [request.episode_revision for request in desk.gateway.service.requests]
    assert said[2:] == ["0123456789ab", "another", ""]


def test_a_gateway_that_serves_another_schema_is_refused(desk: Desk) -> None:
    desk.ask()
    desk.gateway.stop()
    desk.gateway.service.policy.schema_digest = "another"
    desk.gateway.service.policy.revision = "ffffffffffff"
    desk.gateway.start()
    desk.ask("error UNAVAILABLE")
    stopped = desk.of(AskingStopped)[0]
    assert isinstance(stopped.error, SchemaChangedError)
    assert "schema another" in str(stopped.error) and "ffffffffffff" in str(stopped.error)


@pytest.mark.parametrize("transport", ["stream", "unary"])
@pytest.mark.parametrize("says_schema", [True, False])
def test_a_pinned_revision_goes_on_beside_one_of_another_schema(gateway, arguments, transport, says_schema) -> None:
    pinned = {"revision": "0123456789ab"}
    desk = Desk(gateway, arguments, transport, **pinned)
    gateway.service.says_schema = says_schema
    desk.asker.open()
    assert isinstance(desk.ask(**pinned), Chunk)
    gateway.stop()
    gateway.service.schemas["0123456789ab"] = gateway.service.policy.schema_digest
    gateway.service.policy.schema_digest, gateway.service.policy.revision = "another", "ffffffffffff"
    gateway.start()
    desk.ask("error UNAVAILABLE", **pinned)
    assert isinstance(desk.ask(**pinned), Chunk)
    assert [again.revision for again in desk.of(Reconnected)] == ["0123456789ab"]
    assert desk.of(AskingStopped) == []
    # What is pinned must still be what the robot was built for.
    gateway.service.schemas["0123456789ab"] = "another"
    if says_schema:
        assert isinstance(desk.ask(**pinned), SchemaChangedError)
    else:
        assert isinstance(desk.ask("wrong shape", **pinned), ProtocolError)
    desk.asker.close()


def test_a_pinned_robot_gives_a_gateway_that_came_back_time_to_find_its_policies(gateway, arguments) -> None:
    desk = Desk(gateway, arguments, "unary", revision="0123456789ab")
    desk.asker.open()
    gateway.service.policy.name = "not yet"
    now_s = desk.clock.now_s()
    lost = {**arguments, "instruction": "error UNAVAILABLE"}
    desk.asker.ask(Question(owner=desk, step=0, captured_s=now_s, expires_s=now_s + 1, arguments=lost))  # pyright: ignore
    desk.until(lambda: any(isinstance(failed.error, FixRequestError) for failed in desk.of(Failed)))
    gateway.service.policy.name = "tabletop"
    desk.until(desk.asker.is_free)
    assert isinstance(desk.ask(), Chunk)
    desk.asker.close()


def test_a_swap_to_a_revision_of_the_same_schema_goes_on_and_is_said(desk: Desk) -> None:
    desk.ask()
    desk.gateway.service.policy.revision = "ffffffffffff"
    assert isinstance(desk.ask(), Chunk)
    assert isinstance(desk.ask(), Chunk)
    (swap,) = desk.of(SwapSeen)
    assert (swap.previous_revision, swap.revision) == ("0123456789ab", "ffffffffffff")


def test_episodes_that_go_to_one_revision_or_the_other_cost_no_question_and_are_no_swaps(desk: Desk) -> None:
    main, canary = "0123456789ab", "ffffffffffff"
    for number in range(6):
        revision = canary if number % 2 else main
        for _ in range(2):
            assert isinstance(desk.ask(revision=revision, episode_id=f"episode-{number}"), Chunk)
    (first,) = desk.of(SwapSeen)
    assert (first.previous_revision, first.revision) == (main, canary)
    assert desk.gateway.service.num_described == 1
    # In the middle of an episode it is one, though both have answered before.
    assert isinstance(desk.ask(revision=main, episode_id="episode-5"), Chunk)
    assert [swap.revision for swap in desk.of(SwapSeen)] == [canary, main]


@pytest.mark.parametrize("shared", [False, True])
def test_a_revision_of_another_schema_beside_the_main_one_is_refused_though_its_chunks_look_the_same(
    desk: Desk, shared: bool
) -> None:
    desk.ask()
    desk.gateway.service.schemas["ffffffffffff"] = "another"
    if shared:
        # Somebody else asked by the same client after a swap, and knows the new one.
        desk.gateway.service.policy.schema_digest = "another"
        assert desk.asker._client is not None
        desk.asker._client.get_policy("tabletop")
    assert isinstance(desk.ask(revision="ffffffffffff"), SchemaChangedError)
    (stopped, *_) = desk.of(AskingStopped)
    assert isinstance(stopped.error, SchemaChangedError)
    assert "ffffffffffff" in str(stopped.error) and "another" in str(stopped.error)


def test_a_revision_of_an_older_server_is_held_to_the_shapes_of_the_main_one(desk: Desk) -> None:
    desk.gateway.service.says_schema = False
    assert isinstance(desk.ask(revision="eeeeeeeeeeee"), Chunk)
    assert desk.of(SwapSeen) == []
    desk.ask("wrong shape", revision="ffffffffffff")
    stopped = desk.of(AskingStopped)[0]
    assert isinstance(stopped.error, ProtocolError)
    assert "revision ffffffffffff answered with actions of shape [4, 2], expected [4, 3]" in str(stopped.error)


def test_a_gateway_that_came_back_without_its_policies_is_given_time_to_find_them(desk: Desk) -> None:
    desk.ask()
    desk.asker._policy = "not yet"
    now_s = desk.clock.now_s()
    arguments = {**desk.arguments, "instruction": "error UNAVAILABLE"}
    desk.asker.ask(Question(owner=desk, step=0, captured_s=now_s, expires_s=now_s + 1, arguments=arguments))  # pyright: ignore
    desk.until(lambda: any(isinstance(failed.error, FixRequestError) for failed in desk.of(Failed)))
    assert desk.of(AskingStopped) == []
    desk.asker._policy = "tabletop"
    desk.until(desk.asker.is_free)
    assert isinstance(desk.ask(), Chunk)


@pytest.mark.parametrize("says_schema", [True, False])
def test_a_swap_to_another_schema_is_refused_before_its_chunk_is_played(desk: Desk, says_schema: bool) -> None:
    desk.gateway.service.says_schema = says_schema
    desk.ask()
    desk.gateway.service.policy.revision = "ffffffffffff"
    desk.gateway.service.policy.schema_digest = "another"
    assert isinstance(desk.ask(), SchemaChangedError)
    assert len(desk.of(AskingStopped)) >= 1
    assert desk.asker.take() == desk.of(AskingStopped)[:1]


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [("error INVALID_ARGUMENT", FixRequestError), ("nan", ProtocolError), ("request_id", ProtocolError)],
)
def test_what_asking_again_cannot_mend_ends_the_asking(desk: Desk, instruction: str, kind: type) -> None:
    desk.ask(instruction)
    stopped = desk.of(AskingStopped)[0]
    assert isinstance(stopped.error, kind)


def test_the_first_handshake_raises_what_is_wrong(gateway, arguments) -> None:
    desk = Desk(gateway, arguments, "unary")
    desk.asker._policy = "nowhere"
    with pytest.raises(FixRequestError, match="nearest is 'tabletop'"):
        desk.asker.open()
    desk.asker.close()
    with pytest.raises(ValueError, match="transport is 'post'"):
        Desk(gateway, arguments, "post")


def test_a_stream_is_renewed_before_it_ends_and_no_question_is_lost(gateway, arguments) -> None:
    desk = Desk(gateway, arguments, "stream")
    desk.asker.open()
    desk.ask()
    streams = [desk.asker._stream]
    for ahead_s in (1000.0, 2000.0):
        desk.clock.ahead_s = ahead_s
        assert isinstance(desk.ask(), Chunk)
        streams.append(desk.asker._stream)
    desk.asker.close()
    assert streams[1] is streams[0]
    assert streams[2] is not streams[0]
    assert (desk.num_connections, desk.of(Failed)) == (1, [])


def test_closing_ends_a_question_in_flight_and_a_wait(gateway, arguments) -> None:
    desk = Desk(gateway, arguments, "unary")
    desk.asker.open()
    now_s = desk.clock.now_s()
    held = {**arguments, "instruction": "hold"}
    desk.asker.ask(Question(owner=desk, step=0, captured_s=now_s, expires_s=now_s + 60, arguments=held))  # pyright: ignore
    assert gateway.service.arrived.wait(WAIT_S)
    started_s = time.monotonic()
    desk.asker.close()
    assert time.monotonic() - started_s < 2.0
    assert not desk.asker._thread.is_alive()
    assert not desk.asker.is_free()


def test_back_off_doubles_to_its_longest_and_is_jittered_downwards() -> None:
    back_off, generator = BackOff(initial_s=0.1, max_s=1.0), random.Random(1)
    for failures, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (5000, 1.0)):
        drawn = [back_off.delay_s(failures, generator) for _ in range(50)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
    with pytest.raises(ValueError, match="back-off is 2 to 1 s"):
        BackOff(initial_s=2, max_s=1)
