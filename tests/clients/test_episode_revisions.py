"""A client tells every gateway which revision an episode is on, and believes the last one that answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from premotor.client import AsyncPolicyClient, PolicyClient, PolicyError
from premotor.client.episode_revisions import MAX_ROBOTS, EpisodeRevisions
from premotor.v1 import policy_pb2

FIRST, SECOND = "0123456789ab", "ba9876543210"


class Asked:
    """Asks by one of the client's ways; gives what the request said of the episode's revision, None for nothing."""

    def __init__(self, gateway: Any, arguments: dict, way: str) -> None:
        self.gateway, self._arguments, self._way = gateway, arguments, way
        if way.startswith("async"):
            self._loop = asyncio.new_event_loop()
            self._client: Any = self._loop.run_until_complete(_async_client(gateway.address))
        else:
            self._client = PolicyClient(gateway.address, timeout_s=5.0)

    def __call__(self, **changed: Any) -> str | None:
        arguments = {**self._arguments, **changed}
        if self._way.startswith("async"):
            self._loop.run_until_complete(self._ask_async(arguments))
        elif self._way == "stream":
            with self._client.stream() as stream:
                stream.receive(stream.send(**arguments))
        else:
            self._client.predict_chunk(**arguments)
        request = self.gateway.service.requests[-1]
        return request.episode_revision if request.HasField("episode_revision") else None

    async def _ask_async(self, arguments: dict) -> None:
        if self._way == "async":
            await self._client.predict_chunk(**arguments)
            return
        async with self._client.stream() as stream:
            await stream.receive(await stream.send(**arguments))

    def close(self) -> None:
        if self._way.startswith("async"):
            self._loop.run_until_complete(self._client.close())
            self._loop.close()
        else:
            self._client.close()


async def _async_client(address: str) -> AsyncPolicyClient:
    return AsyncPolicyClient(address, timeout_s=5.0)


@pytest.fixture(params=["unary", "stream", "async", "async stream"])
def ask(gateway, arguments, request):
    asked = Asked(gateway, arguments, request.param)
    yield asked
    asked.close()


def test_an_episode_says_what_answered_it_and_adopts_what_answers_next(ask) -> None:
    assert ask() is None
    assert ask() == FIRST
    ask.gateway.service.policy.revision = SECOND
    assert ask() == FIRST
    assert ask() == SECOND


def test_each_robot_of_each_policy_has_an_episode_and_a_new_one_forgets_it(ask) -> None:
    assert ask() is None
    assert ask(robot_id="another") is None
    assert ask(policy="another") is None
    assert ask() == FIRST
    assert ask(episode_id="episode-2") is None
    assert ask(episode_id="episode-2") == FIRST
    assert ask() is None


def test_a_pinned_request_says_nothing_and_teaches_nothing(ask) -> None:
    assert ask(revision=SECOND) is None
    assert ask() is None
    assert ask(revision=SECOND) is None
    assert ask() == FIRST


def test_a_chunk_that_did_not_come_changes_nothing(ask) -> None:
    assert ask() is None
    ask.gateway.service.policy.revision = SECOND
    for instruction in ("error UNAVAILABLE", "nan", "no revision"):
        with pytest.raises(PolicyError):
            ask(instruction=instruction)
    assert ask() == FIRST


def test_what_another_client_got_is_said_until_this_one_knows_better(ask) -> None:
    assert ask(episode_revision=SECOND) == SECOND
    assert ask(episode_revision=SECOND) == FIRST
    assert ask(episode_id="episode-2", episode_revision=SECOND) == SECOND


def request(episode_id: str, robot_id: str = "robot") -> policy_pb2.PredictChunkRequest:
    return policy_pb2.PredictChunkRequest(policy="tabletop", robot_id=robot_id, episode_id=episode_id)


def test_a_chunk_of_an_episode_that_is_over_comes_too_late_to_say_anything() -> None:
    episodes = EpisodeRevisions()
    first, second = request("1"), request("2")
    for each in (first, second):
        episodes.tell(each)
    episodes.note(second, SECOND)
    episodes.note(first, FIRST)
    again = request("2")
    episodes.tell(again)
    assert again.episode_revision == SECOND


def test_the_robot_that_has_not_asked_for_longest_is_forgotten_when_there_are_too_many() -> None:
    episodes = EpisodeRevisions()
    for number in range(MAX_ROBOTS):
        episodes.tell(request("1", f"robot-{number}"))
        episodes.note(request("1", f"robot-{number}"), FIRST)
    for number in (0, MAX_ROBOTS, 0, 1):
        asked = request("1", f"robot-{number}")
        episodes.tell(asked)
        assert asked.episode_revision == (FIRST if number == 0 else "")
