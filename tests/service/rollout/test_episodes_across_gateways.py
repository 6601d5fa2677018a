"""An episode whose requests reach several gateways stays on one revision, unless it was told to move.

Robots say which revision answered last (`began_on`), as their clients do.
"""

from __future__ import annotations

from functools import partial

import pytest

from service.episodes import Episode
from service.errors import NotReadyError, UnknownRevisionError
from service.registry import RevisionState
from service.rollout.operations import Promotion

S = RevisionState
POLICY = "tabletop"


def episode(number: int) -> Episode:
    return Episode(policy=POLICY, robot_id=f"robot-{number}", episode_id="1")


def state(process, revision: str) -> RevisionState:
    return process.registry.revision(POLICY, revision).state


class Robot:
    """Asks one gateway after the other, and says what the last one answered."""

    def __init__(self, number: int) -> None:
        self.episode, self.revision = episode(number), ""

    def asks(self, *processes) -> list[str]:
        answers = []
        for process in processes:
            self.revision = process.policies.routed(self.episode, began_on=self.revision).revision
            answers.append(self.revision)
        return answers


@pytest.fixture
async def gateways(fleet):
    found = [fleet.process(name) for name in ("a", "b")]
    for process in found:
        await process.start()
    return found


@pytest.fixture
async def revisions(fleet, gateways):
    """Two, of which the first serves."""
    names = [await gateways[0].registered(fleet.checkpoint(name, variant=name)) for name in ("old", "new")]
    await gateways[0].carried_out(gateways[0].rollout.promote(POLICY, names[0], actor="ada"))
    return names


async def promoted(gateways, revision: str, **how: bool) -> None:
    first = gateways[0]
    await first.carried_out(first.rollout.promote(POLICY, revision, Promotion(**how), actor="ada"))
    await everywhere(gateways)


async def everywhere(gateways) -> None:
    """Until all go by what the registry says now."""
    generation = gateways[0].registry.generation()
    for process in gateways:
        await process.follower.applied(generation, timeout_s=5)


async def test_one_revision_answers_an_episode_whichever_gateway_it_reaches_across_a_promotion(gateways, revisions):
    a, b = gateways
    old, new = revisions
    robot = Robot(1)
    assert robot.asks(a) == [old]
    await promoted(gateways, new)
    assert robot.asks(b, a, b, a, b) == [old] * 5
    # It is in progress there too: what drains waits for both.
    for process in gateways:
        assert process.policies.num_in_progress(POLICY, old) == 1
    # One that says nothing is new to a gateway that has not heard of it.
    assert b.policies.routed(episode(2)).revision == new


async def test_a_gateway_that_started_since_goes_on_with_the_episode(fleet, gateways, revisions):
    robot = Robot(1)
    assert robot.asks(gateways[0]) == [revisions[0]]
    await promoted(gateways, revisions[1])
    late = fleet.process("c")
    await late.start()
    await late.until(lambda: revisions[0] in late.models.loaded)
    await late.follower.settled(timeout_s=5)
    assert robot.asks(late) == [revisions[0]]


@pytest.mark.parametrize("how", ["promotion", "roll back"])
async def test_an_episode_that_is_told_to_move_does_whatever_its_robot_says(gateways, revisions, how):
    a, b = gateways
    left, taken = revisions if how == "promotion" else reversed(revisions)
    if how == "roll back":
        await promoted(gateways, left, keep_previous=True)
    robot = Robot(1)
    assert robot.asks(a, b) == [left] * 2
    # Something still asks it, so that it drains and could answer.
    with a.policies.using(POLICY, a.policies.serving(POLICY)):
        if how == "promotion":
            await promoted(gateways, taken, move_episodes=True)
        else:
            await a.carried_out(a.rollout.roll_back(POLICY, actor="ada"))
            await everywhere(gateways)
        assert state(a, left) is S.DRAINING
        silent = Robot(2)
        silent.revision = left
        for each in (robot, silent):
            assert each.asks(b, a, b) == [taken] * 3


async def test_what_was_left_once_is_left_although_the_next_change_moves_nothing(fleet, gateways, revisions):
    a, b = gateways
    old, new = revisions
    third = await a.registered(fleet.checkpoint("third", variant="third"))
    robot = Robot(1)
    assert robot.asks(a) == [old]
    with a.policies.using(POLICY, a.policies.serving(POLICY)):
        await promoted(gateways, new, move_episodes=True)
        await promoted(gateways, third)
        assert state(a, old) is S.DRAINING
        assert robot.asks(b, a) == [third] * 2
        # It may serve again.
        await promoted(gateways, old)
        again = Robot(2)
        again.revision = old
        assert again.asks(b, a) == [old] * 2


async def test_an_episode_of_an_unloaded_revision_is_drawn_anew(gateways, revisions):
    a, b = gateways
    old, new = revisions
    robot = Robot(1)
    assert robot.asks(a) == [old]
    await promoted(gateways, new)
    for process in gateways:
        process.now_s[0] = 61.0
    await a.until(lambda: state(a, old) is S.UNLOADED)
    await everywhere(gateways)
    assert robot.asks(b, a) == [new] * 2


async def test_nothing_is_chosen_by_naming_it(gateways, revisions):
    a, b = gateways
    old, new = revisions
    # Loaded everywhere and without traffic.
    await a.carried_out(a.rollout.load(POLICY, new, actor="ada"))
    await everywhere(gateways)
    for number, said in enumerate((new, "0" * 12, "x" * 128, "")):
        robot = Robot(number)
        robot.revision = said
        assert robot.asks(b, a) == [old] * 2


async def test_what_another_gateway_serves_a_moment_earlier_is_believed_while_a_route_changes(gateways, revisions):
    a, b = gateways
    old, new = revisions
    await a.carried_out(a.rollout.load(POLICY, new, actor="ada"))
    a.registry.announce(POLICY, switching=True)
    await everywhere(gateways)
    robot = Robot(1)
    robot.revision = new
    assert robot.asks(b, a) == [new] * 2
    a.registry.announce(POLICY, switching=False)
    await everywhere(gateways)
    other = Robot(2)
    other.revision = new
    assert other.asks(b) == [old]


async def test_an_episode_that_began_elsewhere_ends_on_a_retired_policy_and_none_begins(gateways, revisions):
    a, b = gateways
    robot = Robot(1)
    assert robot.asks(a) == [revisions[0]]
    await a.carried_out(a.rollout.retire(POLICY, actor="ada"))
    await everywhere(gateways)
    assert robot.asks(b, a) == [revisions[0]] * 2
    with pytest.raises(NotReadyError):
        Robot(2).asks(b)


async def test_a_gateway_that_is_cut_off_goes_on_with_an_episode_that_began_elsewhere(gateways, revisions):
    a, b = gateways
    robot = Robot(1)
    assert robot.asks(a) == [revisions[0]]
    b.policies.begin_episodes_until(0.0)
    assert robot.asks(b) == [revisions[0]]
    with pytest.raises(NotReadyError, match="cut off"):
        Robot(2).asks(b)


async def test_a_drain_waits_for_a_robot_that_pinned_the_revision(fleet, gateways, revisions):
    a, b = gateways
    old, new = revisions

    def pins() -> str:
        return b.policies.pinned(episode(1), old).revision

    assert pins() == old
    await promoted(gateways, new)
    await b.until(lambda: sum(each.num_in_progress for each in a.registry.placements(POLICY, old)) == 1)
    assert state(a, old) is S.DRAINING
    assert pins() == old
    # What is pinned decides nothing but that.
    assert b.policies.routed(episode(1)).revision == new
    assert pins() == old
    for process in gateways:
        process.now_s[0] = 61.0
    await a.until(lambda: state(a, old) is S.UNLOADED)


async def test_a_robot_that_pinned_a_revision_of_a_retired_policy_ends_its_episode_on_it(gateways, revisions):
    a, _ = gateways
    pins = partial(a.policies.pinned, revision=revisions[0])
    assert pins(episode(1)).revision == revisions[0]
    await a.carried_out(a.rollout.retire(POLICY, actor="ada"))
    assert pins(episode(1)).revision == revisions[0]
    for other in (episode(2), Episode(policy=POLICY, robot_id="robot-1", episode_id="2")):
        with pytest.raises(NotReadyError):
            pins(other)


async def test_a_roll_back_leaves_a_robot_that_pinned_the_revision_where_it_is(gateways, revisions):
    a, _ = gateways
    old, new = revisions
    await promoted(gateways, new, keep_previous=True)
    assert a.policies.pinned(episode(1), new).revision == new
    await a.carried_out(a.rollout.roll_back(POLICY, actor="ada"))
    await everywhere(gateways)
    assert a.policies.num_in_progress(POLICY, new) == 1
    assert a.policies.pinned(episode(1), new).revision == new
    assert a.policies.routed(episode(1)).revision == old


async def test_what_was_unloaded_can_be_pinned_no_more(gateways, revisions):
    a, _ = gateways
    old, new = revisions
    await promoted(gateways, new)
    await a.until(lambda: state(a, old) is S.UNLOADED)
    await everywhere(gateways)
    with pytest.raises(UnknownRevisionError):
        a.policies.pinned(episode(1), old)


async def test_a_drain_outlasts_a_restart_for_as_long_as_robots_may_take_to_come_back(fleet, gateways, revisions):
    old, new = revisions
    robot = Robot(1)
    assert robot.asks(gateways[0]) == [old]
    await promoted(gateways, new)
    for process in gateways:
        await process.stop()
    late = fleet.process("c")
    await late.start()
    await late.follower.settled(timeout_s=5)
    await late.look_at_drains()
    assert state(late, old) is S.DRAINING
    assert robot.asks(late) == [old]


async def test_what_nobody_came_back_to_after_a_restart_is_unloaded(fleet, gateways, revisions):
    old, new = revisions
    assert Robot(1).asks(gateways[0]) == [old]
    await promoted(gateways, new)
    for process in gateways:
        await process.stop()
    late = fleet.process("c", episode_idle_s=0.5)
    await late.start()
    await late.until(lambda: state(late, old) is S.UNLOADED)


@pytest.mark.parametrize("how", ["leaves", "is lost"])
async def test_a_drain_outlasts_the_gateway_that_had_its_episodes(gateways, revisions, how):
    a, b = gateways
    old, new = revisions
    robot = Robot(1)
    assert robot.asks(a) == [old]
    await promoted(gateways, new)
    await (a.stop() if how == "leaves" else a.crash())
    await b.until(lambda: [each.gateway_id for each in b.registry.gateways()] == ["b"])
    await b.look_at_drains()
    assert state(b, old) is S.DRAINING
    assert robot.asks(b) == [old]


async def test_episodes_that_were_told_to_move_are_waited_for_by_nobody(gateways, revisions):
    a, b = gateways
    old, new = revisions
    with a.policies.using(POLICY, a.policies.serving(POLICY)):
        await promoted(gateways, new, move_episodes=True)
        assert state(a, old) is S.DRAINING
        await a.stop()
        await b.until(lambda: state(b, old) is S.UNLOADED)


@pytest.mark.parametrize("verb", ["load", "shadow"])
async def test_an_episode_goes_on_with_what_drains_although_it_is_wanted_for_more(gateways, revisions, verb):
    a, b = gateways
    old, new = revisions
    robot = Robot(1)
    assert robot.asks(a) == [old]
    await promoted(gateways, new)
    wanted = {
        "load": lambda: a.rollout.load(POLICY, old, actor="ada"),
        "shadow": lambda: a.rollout.shadow(POLICY, old, 0.5, actor="ada"),
    }
    await a.carried_out(wanted[verb]())
    await everywhere(gateways)
    assert robot.asks(b, a) == [old] * 2
    assert state(a, old) is S.DRAINING
    for process in gateways:
        process.now_s[0] = 61.0
    await a.until(lambda: state(a, old) is S.READY)
    assert a.registry.policy(POLICY).route.stable == new
