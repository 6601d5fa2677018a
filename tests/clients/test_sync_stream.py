"""Answers on a stream reach the request they belong to, in any order, or its own error does."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from premotor.client import (
    ChunkStream,
    ClosedError,
    DeadlineExceededError,
    FixRequestError,
    PolicyClient,
    ProtocolError,
    RetryableError,
)
from premotor.client.ledger import MAX_UNRECEIVED


@pytest.fixture
def client(gateway):
    with PolicyClient(gateway.address, timeout_s=5.0) as connected:
        yield connected


def asking(arguments: dict, instruction: str, first: float = 0.0) -> dict:
    return {**arguments, "instruction": instruction, "state": np.array([first, 0, 0], np.float32)}


def test_a_stream_answers_as_predict_chunk_does(client, arguments) -> None:
    with client.stream() as stream:
        streamed = stream.receive(stream.send(**arguments, seed=3))
    alone = client.predict_chunk(**arguments, seed=3)
    np.testing.assert_array_equal(streamed.actions, alone.actions)
    assert (streamed.revision, streamed.seed, streamed.timing) == (alone.revision, alone.seed, alone.timing)


def test_answers_out_of_order_reach_their_requests(client, arguments) -> None:
    with client.stream() as stream:
        first, second, third = (stream.send(**asking(arguments, "later", first)) for first in (1, 2, 3))
        fourth = stream.send(**asking(arguments, "now", 4))
        assert stream.receive(second).actions[0, 0] == 2
        assert stream.receive(fourth).actions[0, 0] == 4
        assert stream.receive(first).actions[0, 0] == 1
        assert stream.receive(third).actions[0, 0] == 3


def test_receiving_without_an_id_takes_answers_as_they_come(client, arguments) -> None:
    with client.stream() as stream:
        first = stream.send(**asking(arguments, "later", 1))
        second = stream.send(**asking(arguments, "now", 2))
        assert [stream.receive().request_id, stream.receive().request_id] == [second, first]


def test_a_failed_request_has_its_own_error_and_the_stream_goes_on(client, arguments) -> None:
    with client.stream() as stream:
        bad = stream.send(**asking(arguments, "error INVALID_ARGUMENT"))
        full = stream.send(**asking(arguments, "error RESOURCE_EXHAUSTED"))
        spoiled = stream.send(**asking(arguments, "nan"))
        good = stream.send(**asking(arguments, "now", 5))
        assert stream.receive(good).actions[0, 0] == 5
        with pytest.raises(FixRequestError) as refusal:
            stream.receive(bad)
        assert (refusal.value.field, refusal.value.request_id) == ("observation.state", bad)
        with pytest.raises(RetryableError) as overload:
            stream.receive(full)
        assert overload.value.retry_delay_s == 0.25
        with pytest.raises(ProtocolError, match="finite"):
            stream.receive(spoiled)


def test_a_requests_timeout_rides_with_it_and_its_late_answer_is_dropped(client, gateway, arguments) -> None:
    with client.stream() as stream:
        late = stream.send(**asking(arguments, "later", 1), timeout_s=0.1)
        with pytest.raises(DeadlineExceededError) as expiry:
            stream.receive(late)
        assert expiry.value.request_id == late
        prompt = stream.send(**asking(arguments, "now", 2))
        assert stream.receive(prompt).actions[0, 0] == 2
        # The late answer came before this one and must not have been taken for it.
        following = stream.send(**asking(arguments, "now", 3))
        assert stream.receive().request_id == following
        with pytest.raises(ValueError, match="was not sent on this stream, or was received before"):
            stream.receive(late)
    assert 0 < gateway.service.stream_timeouts_s[0] <= 0.1
    assert 4 < gateway.service.stream_timeouts_s[1] <= 5


def test_an_answer_nobody_asked_for_ends_the_stream_for_everyone(client, arguments) -> None:
    with client.stream() as stream:
        pending = stream.send(**asking(arguments, "later"))
        stream.send(**asking(arguments, "request_id"))
        with pytest.raises(ProtocolError, match="request_id 'another' came, which was not sent"):
            stream.receive(pending)
        with pytest.raises(ProtocolError, match="given up"):
            stream.send(**arguments)


@pytest.mark.parametrize(("instruction", "error"), [("end", "the server ended the stream"), ("break", "draining")])
def test_when_the_server_ends_the_stream_every_pending_request_can_be_retried(
    client, arguments, instruction: str, error: str
) -> None:
    with client.stream() as stream:
        sent = [stream.send(**asking(arguments, "later")), stream.send(**asking(arguments, instruction))]
        for request_id in sent:
            with pytest.raises(RetryableError, match=error) as failure:
                stream.receive(request_id)
            assert failure.value.request_id == request_id
        with pytest.raises(RetryableError, match=error):
            stream.send(**arguments)
        with pytest.raises(RetryableError, match=error):
            stream.receive()


def test_the_streams_own_deadline_ends_it(client, arguments) -> None:
    with client.stream(timeout_s=0.2) as stream:
        pending = stream.send(**asking(arguments, "later"))
        with pytest.raises(DeadlineExceededError):
            stream.receive(pending)
        with pytest.raises(DeadlineExceededError):
            stream.send(**arguments)


def test_a_request_without_time_is_not_sent(client, gateway, arguments) -> None:
    with client.stream() as stream:
        with pytest.raises(DeadlineExceededError):
            stream.send(**arguments, timeout_s=0.0)
        stream.receive(stream.send(**arguments))
    assert len(gateway.service.requests) == 1


def test_closing_ends_every_wait_and_leaves_no_thread(client, gateway, arguments) -> None:
    errors: list[Exception] = []

    def receive(stream: ChunkStream, request_id: str) -> None:
        try:
            stream.receive(request_id)
        except ClosedError as error:
            errors.append(error)

    before = threading.active_count()
    with client.stream() as stream:
        pending = stream.send(**asking(arguments, "later"))
        assert gateway.service.arrived.wait(5)
        receiver = threading.Thread(target=receive, args=(stream, pending))
        receiver.start()
    receiver.join(5)
    assert len(errors) == 1
    with pytest.raises(ClosedError):
        stream.send(**arguments)
    stream.close()
    names = {thread.name for thread in threading.enumerate()}
    assert "premotor-stream" not in names
    # The server's worker may still be winding down; nothing of the client's is left.
    assert threading.active_count() <= before + 2


def test_closing_the_client_closes_its_streams(gateway, arguments) -> None:
    client = PolicyClient(gateway.address)
    with client.stream() as stream:
        pending = stream.send(**asking(arguments, "later"))
        assert gateway.service.arrived.wait(5)
        client.close()
        with pytest.raises(ClosedError):
            stream.receive(pending)


def test_one_thread_sends_while_another_receives(client, arguments) -> None:
    received: list[float] = []
    with client.stream() as stream:

        def receive() -> None:
            received.extend(float(stream.receive().actions[0, 0]) for _ in range(30))

        stream.send(**asking(arguments, "later", 0))
        receiver = threading.Thread(target=receive)
        receiver.start()
        for step in range(1, 29):
            stream.send(**asking(arguments, "later", step))
        stream.send(**asking(arguments, "now", 29))
        receiver.join(10)
    assert sorted(received) == list(range(30))


def test_misuse_is_named(client, arguments) -> None:
    stream = client.stream()
    with pytest.raises(RuntimeError, match="`with` block"):
        stream.send(**arguments)
    with stream:
        with pytest.raises(ValueError, match="nothing was sent"):
            stream.receive()
        with pytest.raises(RuntimeError, match="entered once"):
            stream.__enter__()


def test_a_caller_who_never_receives_is_stopped_before_memory_is_full(client, arguments) -> None:
    with client.stream() as stream:
        for _ in range(MAX_UNRECEIVED):
            stream.send(**asking(arguments, "later"))
        with pytest.raises(FixRequestError, match="receive them first"):
            stream.send(**arguments)
