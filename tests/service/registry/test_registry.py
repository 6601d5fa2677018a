"""What may follow what: every change of the fleet is one transaction, allowed or refused, and noted."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from service.errors import ConflictError, UnknownOperationError, UnknownPolicyError, UnknownRevisionError
from service.registry import (
    Guard,
    Heard,
    OperationState,
    Placement,
    PolicyRecord,
    Registry,
    RegistryUnavailableError,
    RevisionState,
    Route,
    Shadow,
    Tally,
    WrongRegistryError,
    open_database,
)
from service.registry.database import MIGRATIONS, migrate
from service.registry.tables import PolicyRow, Table
from tests.service.registry.registering import register

S = RevisionState
OLD, NEW = "0" * 12, "1" * 12
AT = datetime(2026, 1, 1, tzinfo=UTC)


def downgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def make_ready(registry: Registry, revision: str) -> None:
    register(registry, revision)
    for state in (S.LOADING, S.WARMING, S.READY):
        registry.set_state("tabletop", revision, state, actor="ada")


def promote(registry: Registry, revision: str) -> PolicyRecord:
    def change(policy: PolicyRecord) -> Route:
        return Route(shares=((revision, 1.0),), previous=policy.route.stable if policy.route else "")

    return registry.change_route("tabletop", change, actor="ada", action="promote")


def test_a_promotion_serves_the_new_revision_and_drains_the_old_in_one_change(registry: Registry) -> None:
    make_ready(registry, OLD)
    make_ready(registry, NEW)
    promote(registry, OLD)
    before = registry.generation()
    policy = promote(registry, NEW)
    assert registry.generation() == before + 1
    assert (policy.route.stable, policy.route.previous) == (NEW, OLD)
    assert [policy.revisions[name].state for name in (OLD, NEW)] == [S.DRAINING, S.SERVING]


def test_a_revision_that_is_not_ready_takes_no_traffic_and_the_route_stays(registry: Registry) -> None:
    make_ready(registry, OLD)
    promote(registry, OLD)
    register(registry, NEW)
    with pytest.raises(ConflictError, match=f"revision {NEW} is registered, expected it to be ready"):
        promote(registry, NEW)
    policy = registry.policy("tabletop")
    assert policy.route.stable == OLD
    assert policy.revisions[OLD].state is S.SERVING


@pytest.mark.parametrize("state", [S.WARMING, S.READY, S.SERVING, S.DRAINING, S.UNLOADED, S.FAILED])
def test_a_registered_revision_can_only_be_loaded(registry: Registry, state: RevisionState) -> None:
    register(registry, NEW)
    with pytest.raises(ConflictError, match=f"revision {NEW} is registered, which cannot become {state}"):
        registry.set_state("tabletop", NEW, state, actor="ada")


def test_a_failure_keeps_its_reason_until_the_next_attempt(registry: Registry) -> None:
    register(registry, NEW)
    registry.set_state("tabletop", NEW, S.LOADING, actor="ada")
    registry.set_state("tabletop", NEW, S.FAILED, error="probe.npz: a chunk is off by 3", actor="ada")
    assert registry.revision("tabletop", NEW).error == "probe.npz: a chunk is off by 3"
    registry.set_state("tabletop", NEW, S.LOADING, actor="ada")
    assert registry.revision("tabletop", NEW).error == ""


def test_shares_serve_together_and_the_one_left_out_drains(registry: Registry) -> None:
    make_ready(registry, OLD)
    make_ready(registry, NEW)
    promote(registry, OLD)

    def split(policy: PolicyRecord) -> Route:
        return Route(shares=((OLD, 0.8), (NEW, 0.2)), shadow=None)

    policy = registry.change_route("tabletop", split, actor="ada", action="split")
    assert [record.state for record in policy.revisions.values()] == [S.SERVING, S.SERVING]
    policy = promote(registry, NEW)
    assert [record.state for record in policy.revisions.values()] == [S.DRAINING, S.SERVING]


def test_a_shadow_must_be_ready_and_does_not_serve(registry: Registry) -> None:
    make_ready(registry, OLD)
    register(registry, NEW)
    promote(registry, OLD)

    def shadow(policy: PolicyRecord) -> Route:
        return Route(shares=((OLD, 1.0),), shadow=Shadow(revision=NEW, share=0.5))

    with pytest.raises(ConflictError, match="is registered, expected it to be ready"):
        registry.change_route("tabletop", shadow, actor="ada", action="shadow")
    for state in (S.LOADING, S.WARMING, S.READY):
        registry.set_state("tabletop", NEW, state, actor="ada")
    policy = registry.change_route("tabletop", shadow, actor="ada", action="shadow")
    assert policy.route.shadow == Shadow(revision=NEW, share=0.5)
    assert policy.revisions[NEW].state is S.READY


@pytest.mark.parametrize("shares", [(), ((OLD, 0.5),), ((OLD, 0.5), (OLD, 0.5)), ((OLD, 1.5), (NEW, -0.5))])
def test_shares_that_make_no_whole_are_refused(shares: tuple[tuple[str, float], ...]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Route(shares=shares)


def test_names_that_are_not_known_are_said_with_the_nearest(registry: Registry) -> None:
    make_ready(registry, OLD)
    with pytest.raises(UnknownPolicyError, match="the nearest name is 'tabletop'"):
        registry.policy("tabeltop")
    with pytest.raises(UnknownRevisionError, match=OLD):
        registry.revision("tabletop", NEW)
    with pytest.raises(UnknownOperationError):
        registry.operation("no such")


def test_what_is_loaded_is_not_deleted(registry: Registry) -> None:
    make_ready(registry, OLD)
    with pytest.raises(ConflictError, match="is ready, expected it to be unloaded first"):
        registry.delete("tabletop", OLD, actor="ada")
    registry.set_state("tabletop", OLD, S.UNLOADED, actor="ada")
    registry.delete("tabletop", OLD, actor="ada")
    assert registry.policy("tabletop").revisions == {}


def test_the_same_digest_with_another_content_is_refused(registry: Registry) -> None:
    register(registry, OLD)
    with pytest.raises(ConflictError, match="registered with another digest"):
        registry.register(
            policy="tabletop",
            revision=OLD,
            manifest_sha256="e" * 64,
            location="elsewhere",
            variant="",
            schema_digest="",
            num_bytes=1,
            actor="eve",
        )
    assert registry.revision("tabletop", OLD).location == f"tabletop/{OLD}"


def test_one_operation_of_a_policy_at_a_time(registry: Registry) -> None:
    first = registry.start_operation(kind="promote", policy="tabletop", revision=NEW, actor="ada", gateway_id="a")
    with pytest.raises(ConflictError, match=f"runs as operation {first.operation_id}"):
        registry.start_operation(kind="load", policy="tabletop", revision=NEW, actor="bob", gateway_id="b")
    registry.start_operation(kind="load", policy="other", revision=NEW, actor="bob", gateway_id="b")
    registry.advance(first.operation_id, "loading")
    ended = registry.end_operation(first.operation_id, error="too little memory")
    assert (ended.state, ended.steps, ended.error) == (OperationState.FAILED, ("loading",), "too little memory")
    assert registry.end_operation(first.operation_id).state is OperationState.FAILED
    assert [each.kind for each in registry.operations(running=True)] == ["load"]
    assert registry.audit("tabletop")[0].outcome == "too little memory"


def test_the_audit_log_says_who_did_what_from_which_revision_to_which(registry: Registry) -> None:
    make_ready(registry, OLD)
    make_ready(registry, NEW)
    promote(registry, OLD)
    promote(registry, NEW)
    last = registry.audit("tabletop", most=1)[0]
    assert (last.actor, last.action, last.from_revision, last.to_revision) == ("ada", "promote", OLD, NEW)
    assert last.outcome == "succeeded"
    earlier = registry.audit("tabletop", before=last.number)
    assert [entry.number for entry in earlier] == list(range(last.number - 1, 0, -1))


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
def test_the_audit_log_cannot_be_changed(registry: Registry, url: str, statement: str) -> None:
    register(registry, OLD)
    engine = open_database(url)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert registry.audit()[0].actor == "ada"


def test_what_was_kept_is_there_after_a_restart(registry: Registry, url: str) -> None:
    make_ready(registry, OLD)
    promote(registry, OLD)
    fleet = registry.fleet()
    registry.close()
    again = Registry(open_database(url))
    assert again.fleet() == fleet
    again.close()


def test_changes_from_many_threads_lose_nothing(registry: Registry) -> None:
    start = registry.generation()

    def work(number: int) -> None:
        for index in range(10):
            register(registry, f"{number:06x}{index:06x}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert registry.generation() == start + 40
    assert len(registry.audit(most=1000)) == 40


def test_a_gateway_s_placements_are_what_it_last_said(registry: Registry) -> None:
    guard = Guard(max_error_rate=0.1, max_latency_p95_s=0.2)
    tally = Tally(change=3, guard=guard, num_requests=20, num_errors=1, num_violations=2, num_slow=4)

    def placement(revision: str, state: RevisionState) -> Placement:
        return Placement(
            gateway_id="a",
            policy="tabletop",
            revision=revision,
            state=state,
            error="",
            attempt=1,
            num_in_progress=2,
            tally=tally if state is S.READY else None,
        )

    heard = registry.beat("a", address="x:1", generation=0, placements=[placement(OLD, S.LOADING)])
    assert heard == Heard(generation=registry.generation(), num_gateways=1)
    registry.beat("a", address="x:1", generation=7, placements=[placement(OLD, S.READY), placement(NEW, S.LOADING)])
    assert registry.placements("tabletop", OLD) == (placement(OLD, S.READY),)
    registry.beat("a", address="x:1", generation=7, placements=[placement(NEW, S.READY)])
    assert registry.placements("tabletop", OLD) == ()
    (gateway,) = registry.gateways()
    assert (gateway.beats, gateway.generation, gateway.address) == (3, 7, "x:1")
    registry.leave("a")
    assert (registry.gateways(), registry.placements("tabletop", NEW)) == ((), ())


def test_a_heartbeat_changes_nothing_that_gateways_agree_on(registry: Registry) -> None:
    before = registry.generation()
    registry.beat("a", address="x:1", generation=0, placements=[])
    assert registry.generation() == before


def test_a_state_is_left_alone_when_it_is_no_longer_the_one_that_was_read(registry: Registry) -> None:
    register(registry, OLD)
    read = registry.revision("tabletop", OLD)
    registry.set_state("tabletop", OLD, S.LOADING, actor="a")
    with pytest.raises(ConflictError, match="is loading and has changed since it was registered"):
        registry.set_state("tabletop", OLD, S.FAILED, actor="a", only_as=read)
    assert registry.revision("tabletop", OLD).state is S.LOADING


def test_a_heartbeat_with_no_news_counts_and_one_of_a_gateway_that_was_taken_for_lost_does_not(
    registry: Registry,
) -> None:
    assert registry.touch("a") is None
    registry.beat("a", address="x:1", generation=5, placements=[])
    assert registry.touch("a") == Heard(generation=registry.generation(), num_gateways=1)
    (gateway,) = registry.gateways()
    assert (gateway.beats, gateway.generation, gateway.address) == (2, 5, "x:1")
    registry.leave("a")
    assert registry.touch("a") is None and not registry.gateways()


def test_which_policy_served_first_is_kept_through_what_comes_and_goes(registry: Registry) -> None:
    """Neither the order of names nor of registrations says it, nor who was promoted last."""
    for policy in ("b", "a", "c"):
        registry.register(
            policy=policy,
            revision=OLD,
            manifest_sha256=OLD + "f" * 52,
            location=policy,
            variant="",
            schema_digest="",
            num_bytes=1,
            actor="ada",
        )
        for state in (S.LOADING, S.WARMING, S.READY):
            registry.set_state(policy, OLD, state, actor="ada")
    assert registry.fleet().first_served == ""
    for policy in ("a", "c", "b", "a"):
        registry.change_route(policy, lambda now: Route(shares=((OLD, 1.0),)), actor="ada", action="promote")
        assert registry.fleet().first_served == "a"
    for policy in ("a", "c", "b"):
        registry.change_route(policy, lambda now: None, actor="ada", action="retire")
    assert registry.fleet().first_served == "a"


def test_the_migrations_make_exactly_the_tables(url: str) -> None:
    engine = open_database(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    engine.dispose()


def test_what_a_registry_held_before_it_knew_when_routes_change_is_kept(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        downgrade(connection, "0001")
        connection.execute(
            text("INSERT INTO policies (name, route, observation_map, created_at) VALUES (:name, :route, '{}', :at)"),
            [
                {"name": "tabletop", "route": '{"shares": [["' + OLD + '", 1.0]]}', "at": AT},
                {"name": "kitchen", "route": None, "at": AT},
            ],
        )
        connection.execute(
            text(
                "INSERT INTO audit (at, actor, action, policy, from_revision, to_revision, outcome, detail) "
                "VALUES (:at, 'ada', :action, 'tabletop', '', '', :outcome, '{}')"
            ),
            [
                {"at": AT, "action": "promote", "outcome": "succeeded"},
                {"at": AT + timedelta(hours=1), "action": "split", "outcome": "too little memory"},
                {"at": AT + timedelta(hours=2), "action": "guard", "outcome": "succeeded"},
            ],
        )
        migrate(connection)
    engine.dispose()
    registry = Registry(open_database(url))
    with registry._reading() as session:
        rows = {row.name: row.route_changed_at for row in session.scalars(select(PolicyRow))}
    assert rows == {"tabletop": AT, "kitchen": None}
    registry.close()


def test_the_time_of_a_route_is_that_of_its_last_change_of_shares(url: str) -> None:
    now = [AT]
    registry = Registry(open_database(url), now=lambda: now[0])
    make_ready(registry, OLD)
    assert registry.policy("tabletop").route_changed_at is None
    promote(registry, OLD)
    now[0] += timedelta(hours=1)
    registry.change_route(
        "tabletop", lambda policy: replace(policy.route, guard=Guard(max_error_rate=0.1)), actor="ada", action="guard"
    )
    policy = registry.policy("tabletop")
    assert (policy.route_changed_at, policy.route.changes, policy.route.guard.max_error_rate) == (AT, 1, 0.1)
    assert [policy.is_watched(AT + timedelta(seconds=age_s)) for age_s in (599, 601)] == [True, False]
    make_ready(registry, NEW)
    promote(registry, NEW)
    policy = registry.policy("tabletop")
    assert (policy.route_changed_at, policy.route.changes) == (now[0], 2)
    registry.close()


def test_a_drained_revision_stays_while_an_operation_may_want_it(registry: Registry) -> None:
    make_ready(registry, OLD)
    make_ready(registry, NEW)
    promote(registry, OLD)
    promote(registry, NEW)
    running = registry.start_operation(kind="shadow", policy="tabletop", revision=OLD, actor="ada", gateway_id="a")
    with pytest.raises(ConflictError, match="an operation of policy 'tabletop' runs"):
        registry.set_state("tabletop", OLD, S.UNLOADED, actor="service", only_idle=True)
    registry.end_operation(running.operation_id)
    registry.set_state("tabletop", OLD, S.UNLOADED, actor="service", only_idle=True)


def test_the_log_knows_policies_that_are_gone(registry: Registry) -> None:
    register(registry, OLD)
    registry.delete_policy("tabletop", actor="ada")
    assert registry.fleet().policies == {}
    assert registry.audited_policies() == ("tabletop",)


def test_a_database_that_is_not_there_is_said_to_be_unavailable(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailableError, match="does not answer"):
        open_database(f"sqlite:///{tmp_path}/no/such/directory/registry.db")
    with pytest.raises(RegistryUnavailableError, match="does not answer"):
        open_database("postgresql://nobody@127.0.0.1:9/none")


def test_a_registry_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    content = (tmp_path / "registry.db").read_bytes()
    with pytest.raises(WrongRegistryError, match="is of version '9999', expected at most '0005': a newer premotor"):
        open_database(url)
    assert (tmp_path / "registry.db").read_bytes() == content


@pytest.mark.parametrize("url", ["mysql://host/name", "registry.db"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected sqlite"):
        open_database(url)
