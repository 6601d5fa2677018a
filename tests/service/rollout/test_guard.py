"""A change that does worse than the operator allows is undone without being asked; one that does well is left alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import ConflictError
from service.gateway.outcomes import Outcome, Outcomes
from service.registry import Fleet, Guard, Placement, PolicyRecord, RevisionRecord, RevisionState, Route, Tally
from service.rollout.guard import GuardWatch
from service.rollout.tallies import Tallies

OLD, NEW = "0" * 12, "1" * 12


@dataclass
class FakeRollout:
    refusal: Exception | None = None
    rolled_back: list[tuple[str, str, str]] = field(default_factory=list)

    async def roll_back(self, policy: str, *, actor: str, reason: str = "", only_change: int | None = None) -> None:
        assert only_change == 3
        self.rolled_back.append((policy, actor, reason))
        if self.refusal is not None:
            raise self.refusal


class World:
    """A policy whose route, traffic and clock a test sets."""

    def __init__(self, guard: Guard) -> None:
        self.now_s = 1000.0
        self.changed_at = datetime(2026, 1, 1, tzinfo=UTC)
        self.route = Route(shares=((NEW, 1.0),), previous=OLD, guard=guard, changes=3)
        self.outcomes = Outcomes(now_s=lambda: self.now_s)
        self.rollout = FakeRollout()
        self.tallies = Tallies(self.outcomes, now_s=lambda: self.now_s, now=self.now)
        # What other gateways say.
        self.others: list[Tally] = []
        self.watch = GuardWatch(
            placements=self.placements, rollout=self.rollout, fleet=lambda: self.fleet, now=self.now
        )

    def now(self) -> datetime:
        """The change was made when the clock said 1000."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s - 1000.0)

    async def placements(self, policy: str, revision: str) -> list[Placement]:
        own = self.tallies.of(self.fleet.policies[policy], revision)
        return [
            Placement(
                gateway_id=f"{number}",
                policy=policy,
                revision=revision,
                state=RevisionState.READY,
                error="",
                attempt=1,
                num_in_progress=0,
                tally=tally,
            )
            for number, tally in enumerate([own, *self.others])
        ]

    @property
    def fleet(self) -> Fleet:
        policy = PolicyRecord(
            name="tabletop",
            route=self.route,
            route_changed_at=self.changed_at,
            revisions={name: revision(name) for name in (OLD, NEW)},
            observation_map={},
        )
        return Fleet(generation=1, policies={"tabletop": policy})

    def answer(self, outcome: Outcome, count: int, *, revision: str = NEW, latency_s: float = 0.03) -> None:
        for _ in range(count):
            self.outcomes.note("tabletop", revision, outcome, latency_s)


def revision(name: str) -> RevisionRecord:
    now = datetime.now(UTC)
    return RevisionRecord(
        policy="tabletop",
        revision=name,
        manifest_sha256=name,
        location="",
        variant="",
        schema_digest="",
        num_bytes=1,
        state=RevisionState.SERVING,
        error="",
        attempt=1,
        registered_at=now,
        changed_at=now,
    )


@pytest.mark.parametrize(
    ("guard", "outcome", "latency_s", "reason"),
    [
        (Guard(max_error_rate=0.1), Outcome.FAILED, 0.03, "error rate 0.333 over 30 requests, allowed 0.1"),
        (Guard(max_violation_rate=0.0), Outcome.VIOLATION, 0.03, "output violation rate 0.333 over 30"),
        (Guard(max_latency_p95_s=0.1), Outcome.ANSWERED, 0.5, "latency p95 above 0.1 s: 10 of 30 answers took longer"),
    ],
)
async def test_a_limit_that_is_broken_rolls_back_and_says_which(guard, outcome, latency_s, reason):
    world = World(guard)
    await world.watch.look()
    world.answer(Outcome.ANSWERED, 20)
    world.answer(outcome, 10, latency_s=latency_s)
    await world.watch.look()
    ((policy, actor, said),) = world.rollout.rolled_back
    assert (policy, actor) == ("tabletop", "guard")
    assert said.startswith(f"revision {NEW}: {reason}")


@pytest.mark.parametrize("count", [0, 19])
async def test_too_few_requests_prove_nothing(count):
    world = World(Guard(max_error_rate=0.0, min_requests=20))
    await world.watch.look()
    world.answer(Outcome.FAILED, count)
    await world.watch.look()
    assert world.rollout.rolled_back == []


@pytest.mark.parametrize(("num_slow", "num_rolled_back"), [(5, 0), (6, 1)])
async def test_a_latency_is_broken_by_more_than_one_answer_in_twenty(num_slow, num_rolled_back):
    world = World(Guard(max_latency_p95_s=0.1))
    await world.watch.look()
    world.answer(Outcome.ANSWERED, 100 - num_slow)
    world.answer(Outcome.ANSWERED, num_slow, latency_s=0.11)
    await world.watch.look()
    assert len(world.rollout.rolled_back) == num_rolled_back


@pytest.mark.parametrize(
    ("counted_by", "num_rolled_back"),
    [({}, 1), ({"change": 2}, 0), ({"guard": Guard(max_error_rate=0.1, window_s=3600.0)}, 0)],
)
async def test_what_another_gateway_counted_is_added_where_it_counted_by_the_same(counted_by, num_rolled_back):
    guard = Guard(max_error_rate=0.1, min_requests=20)
    world = World(guard)
    await world.watch.look()
    world.answer(Outcome.FAILED, 10)
    said = Tally(change=3, guard=guard, num_requests=10, num_errors=10, num_violations=0, num_slow=0)
    world.others = [replace(said, **counted_by)]
    await world.watch.look()
    assert len(world.rollout.rolled_back) == num_rolled_back


async def test_what_went_wrong_before_the_change_or_the_window_does_not_count():
    world = World(Guard(max_error_rate=0.1, window_s=30.0))
    world.answer(Outcome.FAILED, 100)
    world.now_s += 1
    await world.watch.look()
    world.answer(Outcome.FAILED, 19)
    world.now_s += 31
    world.answer(Outcome.ANSWERED, 100)
    await world.watch.look()
    assert world.rollout.rolled_back == []


async def test_a_canary_is_judged_and_not_the_stable_revision_beside_it():
    world = World(Guard(max_error_rate=0.1))
    world.route = replace(world.route, shares=((OLD, 0.8), (NEW, 0.2)), previous="")
    await world.watch.look()
    world.answer(Outcome.FAILED, 100, revision=OLD)
    world.answer(Outcome.ANSWERED, 100)
    await world.watch.look()
    assert world.rollout.rolled_back == []
    world.answer(Outcome.FAILED, 100)
    await world.watch.look()
    assert len(world.rollout.rolled_back) == 1


@pytest.mark.parametrize("why", ["first", "rolled back", "no limits", "long ago"])
async def test_what_is_not_watched_stays(why):
    world = World(Guard(max_error_rate=0.1, watch_s=60.0))
    changed = {
        "first": {"previous": ""},
        "rolled back": {"watched": False},
        "no limits": {"guard": Guard()},
        "long ago": {},
    }[why]
    world.route = replace(world.route, **changed)
    await world.watch.look()
    world.now_s += 61.0 if why == "long ago" else 1.0
    world.answer(Outcome.FAILED, 100)
    await world.watch.look()
    assert world.rollout.rolled_back == []


@pytest.mark.parametrize(("age_s", "num_rolled_back"), [(59.0, 1), (61.0, 0), (7 * 86400.0, 0)])
async def test_a_change_is_watched_from_when_it_was_made_also_by_a_process_that_came_later(age_s, num_rolled_back):
    world = World(Guard(max_error_rate=0.1, watch_s=60.0))
    world.changed_at -= timedelta(seconds=age_s)
    await world.watch.look()
    world.answer(Outcome.FAILED, 100)
    await world.watch.look()
    assert len(world.rollout.rolled_back) == num_rolled_back


async def test_a_change_of_which_nobody_knows_when_it_was_made_is_not_undone():
    world = World(Guard(max_error_rate=0.1))
    world.changed_at = None
    await world.watch.look()
    world.answer(Outcome.FAILED, 100)
    await world.watch.look()
    assert world.rollout.rolled_back == []


async def test_a_roll_back_that_is_refused_is_tried_again():
    world = World(Guard(max_error_rate=0.1))
    world.rollout.refusal = ConflictError("roll back of policy 'tabletop' runs")
    await world.watch.look()
    world.answer(Outcome.FAILED, 100)
    await world.watch.look()
    await world.watch.look()
    assert len(world.rollout.rolled_back) == 2
