"""A gateway that does not hear of a change contradicts the others for less than a second, and lets no robot down."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from functools import partial

import pytest

from service.episodes import Episode
from service.errors import NotReadyError
from service.policies import ServedPolicies
from service.registry import OperationState, RegistryUnavailableError
from service.rollout import FollowerSettings, LeaseSettings, RolloutSettings
from service.rollout.gateways import LiveGateways
from service.rollout.lease import Lease

POLICY = "tabletop"
# As in service: the long one is more than may be disagreed for, and less than until a gateway counts as lost.
LEASE = LeaseSettings(lease_s=1.3, switching_lease_s=0.3)
LOST_S = 1.6
BEGUN = Episode(policy=POLICY, robot_id="begun", episode_id="1")
_numbers = itertools.count()


def new_episode(process) -> str:
    """The revision that an episode begins on; empty when it may not begin."""
    episode = Episode(policy=POLICY, robot_id=f"robot-{next(_numbers)}", episode_id="1")
    try:
        return process.policies.routed(episode).revision
    except NotReadyError:
        return ""


@pytest.fixture
async def gateways(fleet):
    return await two_gateways(fleet, gateway_lost_s=LOST_S)


async def two_gateways(fleet, *, gateway_lost_s: float):
    """They serve `old`; `new` is loaded."""
    found = [fleet.process(name, lease=LEASE, gateway_lost_s=gateway_lost_s) for name in ("a", "b")]
    for process in found:
        await process.start()
    first = found[0]
    old, new = [await first.registered(fleet.checkpoint(name, variant=name)) for name in ("old", "new")]
    await first.carried_out(first.rollout.promote(POLICY, old, actor="ada"))
    await first.carried_out(first.rollout.load(POLICY, new, actor="ada"))
    assert [process.policies.routed(BEGUN).revision for process in found] == [old, old]
    return (*found, old, new)


async def longest_disagreement_s(first, second, during: asyncio.Future) -> float:
    """How long, at a stretch, one began episodes on another revision than the other."""
    longest_s, since_s = 0.0, None
    while not during.done():
        answers = {new_episode(process) for process in (first, second)} - {""}
        now_s = time.monotonic()
        since_s = None if len(answers) < 2 else since_s if since_s is not None else now_s
        longest_s = max(longest_s, now_s - since_s if since_s is not None else 0.0)
        await asyncio.sleep(0.005)
    return longest_s


@pytest.mark.parametrize("when", ["before the change", "in the moment of the change"])
async def test_a_gateway_that_is_cut_off_begins_no_episode_against_a_change_and_goes_on_with_those_it_has(
    gateways, when
):
    first, second, old, new = gateways
    if when == "before the change":
        second.lose_registry()
    else:
        change = first.registry.change_route

        def change_when_alone(*arguments, **options):
            second.lose_registry()
            return change(*arguments, **options)

        first.registry.change_route = change_when_alone
    promotion = asyncio.create_task(first.carried_out(first.rollout.promote(POLICY, new, actor="ada")))
    apart_s = await longest_disagreement_s(first, second, promotion)
    operation = promotion.result()
    assert apart_s < 1.0
    assert (new_episode(first), new_episode(second)) == (new, "")
    assert second.policies.routed(BEGUN).revision == old
    # Who kept the others waiting is named, and what became of it.
    assert operation.steps == (
        "waits for gateway b",
        "every gateway routes by it; gateway b has left, or is cut off and begins no episode",
    )
    second.regain_registry()
    await second.until(lambda: new_episode(second) == new)


async def test_nobody_is_asked_to_take_part_in_a_change_that_failed(gateways):
    first, _, old, new = gateways

    def fail(*_arguments, **_options):
        raise RegistryUnavailableError("the database went away")

    first.registry.change_route = fail
    ended = await first.rollout.ended((await first.rollout.promote(POLICY, new, actor="ada")).operation_id)
    assert ended.error == "the database went away"
    route = first.registry.policy(POLICY).route
    assert route is not None and (route.stable, route.switching) == (old, False)


async def test_a_roll_back_waits_for_no_gateway_that_is_silent(fleet):
    first, second, old, new = await two_gateways(fleet, gateway_lost_s=60.0)
    await first.carried_out(first.rollout.promote(POLICY, new, actor="ada"))
    second.lose_registry()
    operation = await first.rollout.roll_back(POLICY, actor="ada")
    both = asyncio.gather(
        first.until(lambda: new_episode(first) == old), second.until(lambda: new_episode(second) == "")
    )
    apart_s = await longest_disagreement_s(first, second, both)
    await both
    # The one exception to a second: what is left of a lease that began before the change was announced.
    assert apart_s < LEASE.lease_s
    # It is not done before the silent one is heard, or lost.
    assert first.registry.operation(operation.operation_id).state is OperationState.RUNNING
    second.regain_registry()
    ended = await first.rollout.ended(operation.operation_id)
    assert ended.state is OperationState.SUCCEEDED, ended.error
    assert ended.steps[0] == "does not wait for a gateway that is silent"
    assert new_episode(second) == old


async def test_a_gateway_that_is_alone_begins_episodes_however_long_its_registry_is_away(fleet):
    process = fleet.process("a", lease=LEASE)
    await process.start()
    old = await process.registered(fleet.checkpoint("old", variant="old"))
    await process.carried_out(process.rollout.promote(POLICY, old, actor="ada"))
    process.lose_registry()
    await process.until(lambda: not process.follower.reachable)
    assert process.follower.lease_s is None
    assert new_episode(process) == old


async def test_a_gateway_that_crashed_is_no_company_for_the_one_that_takes_its_place(fleet):
    crashed = fleet.process("crashed")
    await crashed.start()
    old = await crashed.registered(fleet.checkpoint("old", variant="old"))
    await crashed.carried_out(crashed.rollout.promote(POLICY, old, actor="ada"))
    assert new_episode(crashed) == old
    await crashed.crash()
    process = fleet.process("a", lease=LEASE, gateway_lost_s=LOST_S)
    await process.start()
    await process.until(lambda: new_episode(process) == old)
    # Nobody changes anything: it is found out by itself.
    await process.until(lambda: [each.gateway_id for each in process.registry.gateways()] == ["a"])
    await process.until(lambda: process.follower.lease_s is None)
    placements = process.registry.placements(POLICY, old)
    assert [each.gateway_id for each in placements] == ["a"]
    process.lose_registry()
    await process.until(lambda: not process.follower.reachable)
    assert process.follower.lease_s is None
    assert new_episode(process) == old


async def test_a_database_that_was_away_for_all_has_lost_no_gateway_when_it_is_back(gateways):
    first, second, _, _ = gateways
    lost_s = 0.2
    live = LiveGateways(first.registry, first.follower, lost_s=lost_s, poll_interval_s=0.01)
    for process in (first, second):
        process.lose_registry()
    await first.until(lambda: not (first.follower.reachable or second.follower.reachable))
    assert {each.gateway_id for each in await live.alive()} == {"a", "b"}
    away_since_s = time.monotonic()
    await first.until(lambda: time.monotonic() > away_since_s + 2 * lost_s)
    # One hears of it first; the other has had no time to say anything.
    first.regain_registry()
    await first.until(lambda: first.follower.reachable)
    assert {each.gateway_id for each in await live.alive()} == {"a", "b"}
    back_since_s = time.monotonic()
    await first.until(lambda: time.monotonic() > back_since_s + 2 * lost_s)
    assert {each.gateway_id for each in await live.alive()} == {"a"}


@pytest.mark.parametrize(
    ("fence", "num_gateways", "is_up"),
    [("auto", 1, False), ("auto", 2, True), ("on", 1, True), ("off", 2, False)],
)
async def test_the_fence_is_up_in_company_or_as_the_operator_says(fence, num_gateways, is_up):
    now_s = [0.0]
    policies = ServedPolicies(now_s=lambda: now_s[0])
    lease = Lease(policies, LeaseSettings(fence=fence))
    lease.renew(0.0, num_gateways=num_gateways, switching=False)
    begins: Callable[[], bool] = partial(getattr, policies, "begins_episodes")
    now_s[0] = 7.9
    assert begins()
    now_s[0] = 8.1
    assert begins() is not is_up
    lease.renew(8.0, num_gateways=num_gateways, switching=True)
    assert begins()
    now_s[0] = 9.1
    assert begins() is not is_up
    lease.stop()


def test_a_lease_that_a_change_would_make_longer_is_refused():
    with pytest.raises(ValueError, match="switching_lease_s is 2"):
        LeaseSettings(lease_s=1.0, switching_lease_s=2.0)


def test_a_lease_that_is_longer_than_its_gateway_is_waited_for_is_refused():
    FollowerSettings().check_lost_after(RolloutSettings().gateway_lost_s)
    with pytest.raises(ValueError, match="lease_s is 8 and beat_s 2, expected less together than gateway_lost_s"):
        FollowerSettings(beat_s=2.0).check_lost_after(RolloutSettings().gateway_lost_s)
