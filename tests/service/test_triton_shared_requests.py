"""Requests that lie in memory: where they are, for how long, and what becomes of those that nobody waits for."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.triton.shared_requests import FEWEST_BYTES, SharedRequests
from service.triton.tensors import ELSEWHERE, ELSEWHERE_HEAD
from tests.conftest import num_shared_requests

LARGE = [b"head", memoryview(b"p" * FEWEST_BYTES), b""]


@pytest.fixture
def requests() -> Iterator[SharedRequests]:
    shared = SharedRequests(enabled=True)
    yield shared
    shared.close()


def where(sent: bytes) -> dict[str, int]:
    return dict(zip(ELSEWHERE_HEAD, struct.unpack(f"<{len(ELSEWHERE_HEAD)}q", sent), strict=True))


def read(sent: bytes) -> bytes:
    """As the model's process does. Raises OSError when nothing is there."""
    there = where(sent)
    assert (there["elsewhere"], there["process_id"]) == (ELSEWHERE, os.getpid())
    with Path(f"/proc/{there['process_id']}/fd/{there['file_descriptor']}").open("rb") as file:
        (token,) = struct.unpack("<q", file.read(8))
        assert token == there["token"]
        return file.read(there["num_bytes"])


def test_a_large_request_is_where_its_few_bytes_say(requests: SharedRequests) -> None:
    with requests.sent(LARGE) as sent:
        assert len(sent) == 8 * len(ELSEWHERE_HEAD)
        assert read(sent) == b"".join(LARGE)


def test_a_small_one_is_sent_itself(requests: SharedRequests) -> None:
    with requests.sent([b"ab", memoryview(b"cd")]) as sent:
        assert sent == b"abcd"


def test_where_memory_is_not_shared_all_are_sent_themselves() -> None:
    with SharedRequests(enabled=False).sent(LARGE) as sent:
        assert sent == b"".join(LARGE)


def test_two_at_once_lie_in_two_places_and_one_after_another_in_one(requests: SharedRequests) -> None:
    with requests.sent(LARGE) as first, requests.sent([b"other", *LARGE[1:]]) as second:
        assert read(first) == b"".join(LARGE)
        assert read(second).startswith(b"other")
        places = {where(each)["file_descriptor"] for each in (first, second)}
        tokens = {where(each)["token"] for each in (first, second)}
    assert (len(places), len(tokens)) == (2, 2)
    with requests.sent(LARGE) as third:
        assert where(third)["file_descriptor"] in places
        assert where(third)["token"] not in tokens


def test_a_larger_one_gets_a_place_that_is_large_enough(requests: SharedRequests) -> None:
    with requests.sent(LARGE):
        pass
    with requests.sent(LARGE * 3) as sent:
        assert read(sent) == b"".join(LARGE * 3)


def test_what_is_given_up_is_gone_and_its_place_is_not_used_again(requests: SharedRequests) -> None:
    with pytest.raises(TimeoutError), requests.sent(LARGE) as given_up:
        raise TimeoutError
    with pytest.raises(OSError):
        read(given_up)
    # The number of its descriptor is free for others: the token tells them apart.
    with requests.sent(LARGE) as sent:
        assert where(sent)["token"] != where(given_up)["token"]


def test_what_does_not_fit_beside_the_others_is_sent_itself(
    requests: SharedRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.triton.shared_requests.MOST_BYTES", 5 * FEWEST_BYTES + 100)
    two, three = [bytes(2 * FEWEST_BYTES)], [bytes(3 * FEWEST_BYTES)]
    with requests.sent(two) as first, requests.sent(two) as second, requests.sent(two) as third:
        assert [len(read(each)) for each in (first, second)] == [2 * FEWEST_BYTES] * 2
        assert third == two[0]
    # In the place of an idle one.
    with requests.sent(three) as larger:
        assert len(read(larger)) == 3 * FEWEST_BYTES
    assert num_shared_requests() == 2
    with pytest.raises(TimeoutError), requests.sent(three):
        raise TimeoutError
    assert num_shared_requests() == 1


def test_what_is_in_use_when_it_is_closed_goes_with_its_answer(requests: SharedRequests) -> None:
    with requests.sent(LARGE) as sent:
        requests.close()
        assert read(sent) == b"".join(LARGE)
    assert num_shared_requests() == 0
    with requests.sent(LARGE) as sent:
        assert sent == b"".join(LARGE)


def test_without_memory_they_are_sent_themselves(requests: SharedRequests, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    before = num_shared_requests()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with requests.sent(LARGE) as sent:
        assert sent == b"".join(LARGE)
    assert num_shared_requests() == before


def test_closing_gives_the_memory_back() -> None:
    before = num_shared_requests()
    requests = SharedRequests(enabled=True)
    with requests.sent(LARGE), requests.sent(LARGE):
        pass
    assert num_shared_requests() == before + 2
    requests.close()
    assert num_shared_requests() == before
