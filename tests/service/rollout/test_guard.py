"""A change that does worse than the operator allows is undone without being asked; one that does well is left alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from service.errors import ConflictError
from service.gateway.outcomes import Outcome, Outcomes
from service.registry import Fleet, Guard, PolicyRecord, RevisionRecord, RevisionState, Route
from service.rollout.guard import GuardWatch

OLD, NEW = "0" * 12, "1" * 12


@dataclass
class FakeRollout:
    refusal: Exception | None = None
    rolled_back: list[tuple[str, str, str]] = field(default_factory=list)

    async def roll_back(self, policy: str, *, actor: str, reason: str = "") -> None:
        self.rolled_back.append((policy, actor, reason))
        if self.refusal is not None:
            raise self.refusal


class World:
    """A policy whose route, traffic and clock a test sets."""

    def __init__(self, guard: Guard) -> None:
        self.now_s = 1000.0
        self.route = Route(shares=((NEW, 1.0),), previous=OLD, guard=guard, changes=3)
        self.outcomes = Outcomes(now_s=lambda: self.now_s)
        self.rollout = FakeRollout()
        self.watch = GuardWatch(
            outcomes=self.outcomes, rollout=self.rollout, fleet=lambda: self.fleet, now_s=lambda: self.now_s
        )

    @property
    def fleet(self) -> Fleet:
        policy = PolicyRecord(
            name="tabletop",
            route=self.route,
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
        registered_at=now,
        changed_at=now,
    )


@pytest.mark.parametrize(
    ("guard", "outcome", "latency_s", "reason"),
    [
        (Guard(max_error_rate=0.1), Outcome.FAILED, 0.03, "error rate 0.333 over 30 requests, allowed 0.1"),
        (Guard(max_violation_rate=0.0), Outcome.VIOLATION, 0.03, "output violation rate 0.333 over 30"),
        (Guard(max_latency_p95_s=0.1), Outcome.ANSWERED, 0.5, "latency p95 0.5 s over 30 requests, allowed 0.1 s"),
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


async def test_a_roll_back_that_is_refused_is_tried_again():
    world = World(Guard(max_error_rate=0.1))
    world.rollout.refusal = ConflictError("promote of policy 'tabletop' runs")
    await world.watch.look()
    world.answer(Outcome.FAILED, 100)
    await world.watch.look()
    await world.watch.look()
    assert len(world.rollout.rolled_back) == 2
