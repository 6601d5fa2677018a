"""An episode stays on the revision that it began on, and a share that grows moves no episode back and forth."""

from __future__ import annotations

from collections import Counter

import pytest

from service.episodes import Episode, EpisodeTable, draw

OLD, NEW, THIRD = "old", "new", "third"


def episode(number: int) -> Episode:
    return Episode(policy="tabletop", robot_id=f"robot-{number}", episode_id=str(number))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_episode_is_remembered_while_it_asks_and_forgotten_once_it_is_silent(clock):
    table = EpisodeTable(idle_s=10.0, now_s=clock)
    table.hold(episode(1), OLD)
    clock.now_s = 9.0
    assert table.revision(episode(1)) == OLD
    table.hold(episode(1), OLD)
    clock.now_s = 18.0
    assert (table.revision(episode(1)), table.count("tabletop", OLD)) == (OLD, 1)
    clock.now_s = 19.1
    assert (table.revision(episode(1)), table.count("tabletop", OLD)) == (None, 0)


def test_the_longest_silent_episode_is_forgotten_when_there_are_too_many(clock):
    table = EpisodeTable(max_episodes=2, now_s=clock)
    for number in (1, 2):
        table.hold(episode(number), OLD)
    table.hold(episode(1), OLD)
    table.hold(episode(3), NEW)
    assert [table.revision(episode(number)) for number in (1, 2, 3)] == [OLD, None, NEW]
    assert (table.count("tabletop", OLD), table.count("tabletop", NEW)) == (1, 1)


def test_a_robot_s_new_episode_ends_the_one_before_and_is_drawn_anew():
    table = EpisodeTable()
    first = Episode(policy="tabletop", robot_id="arm", episode_id="1")
    second = Episode(policy="tabletop", robot_id="arm", episode_id="2")
    table.hold(first, OLD)
    assert table.revision(second) is None
    table.hold(second, NEW)
    assert (table.revision(first), table.revision(second)) == (None, NEW)
    assert (table.count("tabletop", OLD), table.count("tabletop", NEW)) == (0, 1)


def test_letting_go_of_a_revision_moves_its_episodes_of_that_policy_only():
    table = EpisodeTable()
    other = Episode(policy="other", robot_id="robot", episode_id="1")
    for each, revision in ((episode(1), OLD), (episode(2), NEW), (other, OLD)):
        table.hold(each, revision)
    assert table.release("tabletop", OLD) == 1
    assert [table.revision(each) for each in (episode(1), episode(2), other)] == [None, NEW, OLD]


def test_what_is_pinned_is_in_progress_and_changes_nothing_of_what_is_routed(clock):
    table = EpisodeTable(idle_s=10.0, now_s=clock)
    table.hold(episode(1), OLD)
    for revision in (NEW, THIRD, NEW):
        table.hold_pinned(episode(1), revision)
    assert table.revision(episode(1)) == OLD
    assert [table.count("tabletop", revision) for revision in (OLD, NEW, THIRD)] == [1, 1, 1]
    table.hold_pinned(episode(2), OLD)
    assert table.revision(episode(2)) is None
    # Those that are routed are let go of, whoever pins a revision asked for no other.
    assert (table.release("tabletop", OLD), table.release("tabletop", NEW)) == (1, 0)
    assert [table.count("tabletop", revision) for revision in (OLD, NEW, THIRD)] == [1, 1, 1]
    clock.now_s = 10.1
    assert [table.is_pinned(episode(1), revision) for revision in (NEW, THIRD)] == [False, False]
    assert [table.count("tabletop", revision) for revision in (OLD, NEW, THIRD)] == [0, 0, 0]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_a_share_of_the_episodes_falls_to_a_revision(share):
    drawn = Counter(draw(episode(number), ((OLD, 1 - share), (NEW, share))) for number in range(10_000))
    # Five standard deviations of a binomial.
    assert abs(drawn[NEW] / 10_000 - share) <= 5 * (share * (1 - share) / 10_000) ** 0.5


def test_a_growing_share_takes_episodes_from_the_stable_revision_and_gives_none_back():
    shares = [((OLD, 1 - share), (NEW, share)) for share in (0.05, 0.2, 0.6, 1.0)]
    for number in range(2000):
        drawn = [draw(episode(number), each) for each in shares]
        assert drawn == sorted(drawn, key=[OLD, NEW].index)


def test_a_second_canary_takes_nothing_from_the_first():
    for number in range(2000):
        alone = draw(episode(number), ((OLD, 0.8), (NEW, 0.2)))
        both = draw(episode(number), ((OLD, 0.5), (NEW, 0.2), (THIRD, 0.3)))
        assert both == NEW if alone == NEW else both in (OLD, THIRD)


def test_ids_that_run_together_are_different_episodes():
    pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")]
    shares = ((OLD, 0.5), *((str(index), 0.5 / 64) for index in range(64)))
    drawn = {draw(Episode(policy="p", robot_id=r * 9, episode_id=e * 9), shares) for r, e in pairs}
    assert len(drawn) > 1
