"""What is read and changed while others change it too."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from service.errors import ConflictError
from service.registry import Guard, PolicyRecord, Registry, RevisionState, Route, open_database
from tests.service.registry.registering import register

S = RevisionState
POLICY = "tabletop"
OLD, NEW, THIRD, FOURTH = "0" * 12, "1" * 12, "2" * 12, "3" * 12


def make_ready(registry: Registry, *revisions: str) -> None:
    for revision in revisions:
        register(registry, revision)
        for state in (S.LOADING, S.WARMING, S.READY):
            registry.set_state(POLICY, revision, state, actor="ada")


def promote(registry: Registry, revision: str, **options: str) -> PolicyRecord:
    route = Route(shares=((revision, 1.0),))
    return registry.change_route(POLICY, lambda now: route, actor="ada", action="promote", **options)


def test_a_fleet_is_read_as_it_was_in_one_moment(registry: Registry, url: str) -> None:
    make_ready(registry, OLD)
    before, reads = registry.fleet(), []
    with closing(Registry(open_database(url))) as other:

        @event.listens_for(registry._engine, "after_cursor_execute")
        def change_meanwhile(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if statement.startswith("SELECT"):
                reads.append(statement)
                if len(reads) == 1:
                    promote(other, OLD)

        assert registry.fleet() == before
        assert len(reads) > 1
        assert registry.fleet() == other.fleet() != before


def test_the_newest_registration_is_the_last_whatever_was_forgotten_before(registry: Registry) -> None:
    for revision in (OLD, NEW, THIRD):
        register(registry, revision)
    for revision in (OLD, NEW):
        registry.delete(POLICY, revision, actor="ada")
    register(registry, FOURTH)
    assert [*registry.policy(POLICY).revisions] == [THIRD, FOURTH]


def test_what_an_operation_announced_outlasts_a_guard_that_is_set_meanwhile(registry: Registry) -> None:
    make_ready(registry, OLD, NEW)
    promote(registry, OLD)
    running = registry.start_operation(kind="promote", policy=POLICY, revision=NEW, actor="ada", gateway_id="a")
    registry.announce(POLICY, switching=True, operation_id=running.operation_id)
    registry.change_route(
        POLICY, lambda now: replace(now.route, guard=Guard(max_error_rate=0.1)), actor="bob", action="guard"
    )
    route = registry.policy(POLICY).route
    assert (route.switching, route.guard.max_error_rate) == (True, 0.1)
    assert promote(registry, NEW, operation_id=running.operation_id).route.switching is False


def test_nobody_takes_back_what_an_operation_that_runs_has_announced(registry: Registry) -> None:
    make_ready(registry, OLD, NEW)
    promote(registry, OLD)
    running = registry.start_operation(kind="promote", policy=POLICY, revision=NEW, actor="ada", gateway_id="a")
    registry.announce(POLICY, switching=True, operation_id=running.operation_id)
    with pytest.raises(ConflictError, match="an operation of policy 'tabletop' runs"):
        registry.announce(POLICY, switching=False, only_idle=True)
    assert registry.policy(POLICY).route.switching
    registry.end_operation(running.operation_id)
    registry.announce(POLICY, switching=False, only_idle=True)
    assert not registry.policy(POLICY).route.switching


def test_what_is_kept_as_it_drains_is_not_unloaded_by_who_has_not_heard_of_it(registry: Registry) -> None:
    make_ready(registry, OLD, NEW)
    promote(registry, OLD)
    read = promote(registry, NEW).revisions[OLD]
    keep(registry, OLD)
    with pytest.raises(ConflictError, match="is draining and has changed since"):
        registry.set_state(POLICY, OLD, S.UNLOADED, actor="service", only_as=read)
    kept = registry.revision(POLICY, OLD)
    assert (kept.state, kept.kept) == (S.DRAINING, True)
    registry.set_state(POLICY, OLD, S.READY, actor="service", only_as=kept)
    assert not registry.revision(POLICY, OLD).kept


def test_only_what_drains_is_kept_and_nothing_of_a_retired_policy(registry: Registry) -> None:
    make_ready(registry, OLD, NEW)
    promote(registry, OLD)
    promote(registry, NEW)
    for revision in (OLD, NEW):
        keep(registry, revision)
    assert [each.kept for each in registry.policy(POLICY).revisions.values()] == [True, False]
    policy = registry.change_route(POLICY, lambda now: None, actor="ada", action="retire")
    assert [(each.state, each.kept) for each in policy.revisions.values()] == [(S.DRAINING, False)] * 2


def keep(registry: Registry, revision: str) -> None:
    running = registry.start_operation(kind="load", policy=POLICY, revision=revision, actor="ada", gateway_id="a")
    registry.keep(POLICY, revision, actor="ada", operation_id=running.operation_id)
    registry.end_operation(running.operation_id)
