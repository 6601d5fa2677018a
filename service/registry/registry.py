"""Every read and every change of what the fleet serves, each in one transaction, each change in the audit log.

Owns what may follow what. Does not own carrying a change out (rollout/), nor reading checkpoints. Blocking: callers on
an event loop use a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.errors import ConflictError, UnknownOperationError, UnknownPolicyError, UnknownRevisionError
from service.registry.database import bare_value, unavailable_if_lost
from service.registry.records import (
    AuditEntry,
    Fleet,
    Gateway,
    Guard,
    Heard,
    Operation,
    OperationState,
    Placement,
    PolicyRecord,
    RevisionRecord,
    Route,
    Shadow,
)
from service.registry.states import RevisionState
from service.registry.tables import AuditRow, FleetRow, GatewayRow, OperationRow, PlacementRow, PolicyRow, RevisionRow
from service.registry.tokens import TokenTransactions
from service.registry.transactions import SUCCEEDED

REGISTER = "register"


class Registry(TokenTransactions):
    """One database. Thread-safe; every method may raise RegistryUnavailableError."""

    # What is served.

    def generation(self) -> int:
        """Asked several times a second by every gateway, so past SQLAlchemy's own layers: a tenth of the time."""
        with unavailable_if_lost(), self._reader.connect() as connection:
            return bare_value(connection, self._generation_sql)

    def fleet(self) -> Fleet:
        with self._reading() as session:
            return self._fleet(session)

    def policy(self, policy: str) -> PolicyRecord:
        """Raises UnknownPolicyError."""
        return _known(self.fleet(), policy)

    def revision(self, policy: str, revision: str) -> RevisionRecord:
        """Raises UnknownPolicyError, UnknownRevisionError."""
        return _revision_of(self.policy(policy), revision)

    def register(
        self,
        *,
        policy: str,
        revision: str,
        manifest_sha256: str,
        location: str,
        variant: str,
        schema_digest: str,
        num_bytes: int,
        actor: str,
    ) -> RevisionRecord:
        """Makes a revision known, and its policy with it. Naming it again changes nothing but its location."""
        with self._changing() as session:
            now = self._now()
            known = session.get(RevisionRow, (policy, revision))
            if known is not None and (known.location, known.manifest_sha256) == (location, manifest_sha256):
                return _revision(known)
            if session.get(PolicyRow, policy) is None:
                session.add(PolicyRow(name=policy, route=None, observation_map={}, created_at=now))
            row = session.get(RevisionRow, (policy, revision))
            if row is None:
                number = session.scalar(select(func.count()).select_from(RevisionRow).filter_by(policy=policy))
                row = RevisionRow(
                    policy=policy,
                    revision=revision,
                    number=number,
                    manifest_sha256=manifest_sha256,
                    variant=variant,
                    schema_digest=schema_digest,
                    num_bytes=num_bytes,
                    state=RevisionState.REGISTERED,
                    error="",
                    registered_at=now,
                )
                session.add(row)
            elif row.manifest_sha256 != manifest_sha256:
                raise ConflictError(f"revision {revision} of policy {policy!r} is registered with another digest")
            row.location, row.changed_at = location, now
            self._note(session, actor, "register", policy, "", revision, {"location": location})
            session.flush()
            return _revision(row)

    def set_state(
        self,
        policy: str,
        revision: str,
        state: RevisionState,
        *,
        error: str = "",
        actor: str,
        only_from: RevisionState | None = None,
    ) -> None:
        """Raises ConflictError for a change that there is not, and where the revision is no longer in `only_from`."""
        with self._changing() as session:
            row = self._row(session, policy, revision)
            if only_from is not None and row.state != only_from:
                raise ConflictError(f"revision {revision} is {row.state}, expected it to be {only_from} still")
            self._move(row, state, error)
            self._note(session, actor, str(state), policy, revision, revision, {}, outcome=error or SUCCEEDED)

    def change_route(
        self,
        policy: str,
        change: Callable[[PolicyRecord], Route],
        *,
        actor: str,
        action: str,
        detail: Mapping[str, Any] | None = None,
    ) -> PolicyRecord:
        """Puts `change(now)` in place of a policy's route, and moves revisions between ready, serving and draining.

        Raises ConflictError when a revision that is to take traffic is not ready, and what `change` raises.
        """
        with self._changing() as session:
            before = _known(self._fleet(session), policy)
            route = replace(change(before), switching=False)
            if before.route is not None and route.shares != before.route.shares:
                route = replace(route, changes=before.route.changes + 1)
            taking = set(route.revisions)
            for name in (*route.revisions, *([route.shadow.revision] if route.shadow else [])):
                if not _revision_of(before, name).state.answers:
                    raise ConflictError(f"revision {name} is {before.revisions[name].state}, expected it to be ready")
            for name, record in before.revisions.items():
                row = self._row(session, policy, name)
                if name in taking and record.state is not RevisionState.SERVING:
                    self._move(row, RevisionState.SERVING, "")
                elif name not in taking and record.state is RevisionState.SERVING:
                    self._move(row, RevisionState.DRAINING, "")
            policy_row = session.get(PolicyRow, policy)
            assert policy_row is not None
            policy_row.route = _route_json(route)
            stable = before.route.stable if before.route else ""
            noted = {**(detail or {}), **_changed(before.route, route)}
            self._note(session, actor, action, policy, stable, route.stable, noted)
            session.flush()
            return _known(self._fleet(session), policy)

    def announce(self, policy: str, *, switching: bool) -> int:
        """Says that a policy's route is about to change, or is not after all. Returns the fleet's generation."""
        with self._changing() as session:
            row = session.get(PolicyRow, policy)
            if row is not None and row.route:
                row.route = {**row.route, "switching": switching}
            return session.scalars(select(FleetRow.generation)).one()

    def set_observation_map(self, policy: str, observation_map: Mapping[str, Any], *, actor: str) -> None:
        with self._changing() as session:
            row = session.get(PolicyRow, policy)
            if row is None:
                raise UnknownPolicyError(policy, session.scalars(select(PolicyRow.name)).all())
            row.observation_map = dict(observation_map)
            self._note(session, actor, "configure", policy, "", "", {"observation_map": dict(observation_map)})

    def delete(self, policy: str, revision: str, *, actor: str) -> None:
        """Forgets a revision that nothing has loaded. Its files stay where they are."""
        with self._changing() as session:
            row = self._row(session, policy, revision)
            if RevisionState(row.state).wanted:
                raise ConflictError(f"revision {revision} is {row.state}, expected it to be unloaded first")
            session.execute(delete(PlacementRow).filter_by(policy=policy, revision=revision))
            session.delete(row)
            policy_row = session.get(PolicyRow, policy)
            if policy_row is not None and policy_row.route and policy_row.route.get("previous") == revision:
                policy_row.route = {**policy_row.route, "previous": ""}
            self._note(session, actor, "delete", policy, revision, "", {})

    # Operations.

    def start_operation(self, *, kind: str, policy: str, revision: str, actor: str, gateway_id: str) -> Operation:
        """Raises ConflictError while another one changes what the policy serves, which registering does not."""
        with self._changing(bump=False) as session:
            running = session.scalars(
                select(OperationRow)
                .filter_by(policy=policy, state=str(OperationState.RUNNING))
                .where(OperationRow.kind != REGISTER)
            ).first()
            if running is not None and kind != REGISTER:
                raise ConflictError(
                    f"{running.kind} of policy {policy!r} runs as operation {running.operation_id}, expected it to end"
                )
            now = self._now()
            row = OperationRow(
                operation_id=secrets.token_hex(8),
                kind=kind,
                policy=policy,
                revision=revision,
                actor=actor,
                gateway_id=gateway_id,
                state=OperationState.RUNNING,
                steps=[],
                error="",
                created_at=now,
                changed_at=now,
            )
            session.add(row)
            session.flush()
            return _operation(row)

    def advance(self, operation_id: str, step: str, *, revision: str = "") -> None:
        """`revision` is what an operation turned out to be about, if that was not known at first."""
        with self._changing(bump=False) as session:
            row = self._operation_row(session, operation_id)
            row.steps, row.changed_at = [*row.steps, step], self._now()
            row.revision = revision or row.revision

    def end_operation(self, operation_id: str, *, error: str = "") -> Operation:
        """An operation that has ended stays as it ended."""
        with self._changing(bump=False) as session:
            row = self._operation_row(session, operation_id)
            if row.state == OperationState.RUNNING:
                row.state = OperationState.FAILED if error else OperationState.SUCCEEDED
                row.error, row.changed_at = error, self._now()
                if error:
                    self._note(session, row.actor, row.kind, row.policy, "", row.revision, {}, outcome=error)
            return _operation(row)

    def operation(self, operation_id: str) -> Operation:
        """Raises UnknownOperationError."""
        with self._reading() as session:
            return _operation(self._operation_row(session, operation_id))

    def operations(self, policy: str = "", *, running: bool = False, most: int = 100) -> tuple[Operation, ...]:
        """The newest first."""
        query = select(OperationRow).order_by(OperationRow.created_at.desc()).limit(most)
        if policy:
            query = query.filter_by(policy=policy)
        if running:
            query = query.filter_by(state=str(OperationState.RUNNING))
        with self._reading() as session:
            return tuple(_operation(row) for row in session.scalars(query))

    # Who did what.

    def audit(self, policy: str = "", *, before: int | None = None, most: int = 100) -> tuple[AuditEntry, ...]:
        """The newest first; `before` is the number of an entry, to go on from."""
        query = select(AuditRow).order_by(AuditRow.number.desc()).limit(most)
        if policy:
            query = query.filter_by(policy=policy)
        if before is not None:
            query = query.where(AuditRow.number < before)
        with self._reading() as session:
            return tuple(_entry(row) for row in session.scalars(query))

    def note(self, *, actor: str, action: str, policy: str = "", detail: Mapping[str, Any], outcome: str) -> None:
        """Adds to the audit log what changes no revision, such as credentials."""
        with self._changing(bump=False) as session:
            self._note(session, actor, action, policy, "", "", dict(detail), outcome=outcome)

    # Gateways.

    def beat(self, gateway_id: str, *, address: str, generation: int, placements: Sequence[Placement]) -> Heard:
        """A gateway says that it lives, which generation it routes by and how far it is."""
        with self._changing(bump=False) as session:
            row = session.get(GatewayRow, gateway_id)
            if row is None:
                row = GatewayRow(gateway_id=gateway_id, beats=0, started_at=self._now())
                session.add(row)
            row.address, row.generation, row.beats = address, generation, row.beats + 1
            session.flush()
            known = {
                (row.policy, row.revision): row
                for row in session.scalars(select(PlacementRow).filter_by(gateway_id=gateway_id))
            }
            for placement in placements:
                each = known.pop((placement.policy, placement.revision), None)
                if each is None:
                    each = PlacementRow(gateway_id=gateway_id, policy=placement.policy, revision=placement.revision)
                    session.add(each)
                each.state, each.error, each.num_in_progress = (
                    placement.state,
                    placement.error,
                    placement.num_in_progress,
                )
            for gone in known.values():
                session.delete(gone)
            return Heard(
                generation=session.scalars(select(FleetRow.generation)).one(),
                num_gateways=session.scalars(select(func.count()).select_from(GatewayRow)).one(),
            )

    def touch(self, gateway_id: str) -> Heard | None:
        """A heartbeat that says nothing new, for a fraction of `beat`'s cost; None when the gateway must say all."""
        beating = update(GatewayRow).filter_by(gateway_id=gateway_id).values(beats=GatewayRow.beats + 1)
        with unavailable_if_lost(), self._engine.begin() as connection:
            if not connection.execute(beating).rowcount:
                return None
            num_gateways = select(func.count()).select_from(GatewayRow).scalar_subquery()
            generation, count = connection.execute(select(FleetRow.generation, num_gateways)).one()
            return Heard(generation=generation, num_gateways=count)

    def leave(self, gateway_id: str) -> None:
        """A gateway has stopped, or an operator says that it is dead."""
        with self._changing(bump=False) as session:
            session.execute(delete(PlacementRow).filter_by(gateway_id=gateway_id))
            session.execute(delete(GatewayRow).filter_by(gateway_id=gateway_id))

    def gateways(self) -> tuple[Gateway, ...]:
        with self._reading() as session:
            return tuple(
                Gateway(
                    gateway_id=row.gateway_id,
                    address=row.address,
                    beats=row.beats,
                    generation=row.generation,
                    started_at=row.started_at,
                )
                for row in session.scalars(select(GatewayRow).order_by(GatewayRow.gateway_id))
            )

    def placements(self, policy: str, revision: str) -> tuple[Placement, ...]:
        with self._reading() as session:
            return tuple(
                Placement(
                    gateway_id=row.gateway_id,
                    policy=row.policy,
                    revision=row.revision,
                    state=RevisionState(row.state),
                    error=row.error,
                    num_in_progress=row.num_in_progress,
                )
                for row in session.scalars(select(PlacementRow).filter_by(policy=policy, revision=revision))
            )

    # Rows and records.

    def _fleet(self, session: Session) -> Fleet:
        session.flush()
        revisions: dict[str, dict[str, RevisionRecord]] = {}
        for row in session.scalars(select(RevisionRow).order_by(RevisionRow.number)):
            revisions.setdefault(row.policy, {})[row.revision] = _revision(row)
        return Fleet(
            generation=session.scalars(select(FleetRow.generation)).one(),
            policies={
                row.name: PolicyRecord(
                    name=row.name,
                    route=_route(row.route) if row.route else None,
                    revisions=revisions.get(row.name, {}),
                    observation_map=row.observation_map,
                )
                for row in session.scalars(select(PolicyRow).order_by(PolicyRow.name))
            },
        )

    def _row(self, session: Session, policy: str, revision: str) -> RevisionRow:
        row = session.get(RevisionRow, (policy, revision))
        if row is None:
            raise UnknownRevisionError(policy, revision, _known(self._fleet(session), policy).revisions)
        return row

    def _operation_row(self, session: Session, operation_id: str) -> OperationRow:
        row = session.get(OperationRow, operation_id)
        if row is None:
            raise UnknownOperationError(operation_id)
        return row

    def _move(self, row: RevisionRow, state: RevisionState, error: str) -> None:
        if not RevisionState(row.state).may_become(state):
            raise ConflictError(f"revision {row.revision} is {row.state}, which cannot become {state}")
        row.state, row.error, row.changed_at = state, error, self._now()


def _known(fleet: Fleet, policy: str) -> PolicyRecord:
    try:
        return fleet.policies[policy]
    except KeyError:
        raise UnknownPolicyError(policy, fleet.policies) from None


def _revision_of(policy: PolicyRecord, revision: str) -> RevisionRecord:
    try:
        return policy.revisions[revision]
    except KeyError:
        raise UnknownRevisionError(policy.name, revision, policy.revisions) from None


def _revision(row: RevisionRow) -> RevisionRecord:
    return RevisionRecord(
        policy=row.policy,
        revision=row.revision,
        manifest_sha256=row.manifest_sha256,
        location=row.location,
        variant=row.variant,
        schema_digest=row.schema_digest,
        num_bytes=row.num_bytes,
        state=RevisionState(row.state),
        error=row.error,
        registered_at=row.registered_at,
        changed_at=row.changed_at,
    )


def _operation(row: OperationRow) -> Operation:
    return Operation(
        operation_id=row.operation_id,
        kind=row.kind,
        policy=row.policy,
        revision=row.revision,
        actor=row.actor,
        gateway_id=row.gateway_id,
        state=OperationState(row.state),
        steps=tuple(row.steps),
        error=row.error,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        at=row.at,
        actor=row.actor,
        action=row.action,
        policy=row.policy,
        from_revision=row.from_revision,
        to_revision=row.to_revision,
        outcome=row.outcome,
        detail=row.detail,
    )


def _changed(before: Route | None, after: Route) -> dict[str, Any]:
    """What an audit entry cannot say by two revisions: the shares of a split, one's end included, and of a shadow."""
    changed: dict[str, Any] = {}
    if before is not None and before.shares != after.shares and max(len(before.shares), len(after.shares)) > 1:
        changed["shares"] = dict(after.shares)
    if after.shadow != (before.shadow if before is not None else None):
        changed["shadow"] = {after.shadow.revision: after.shadow.share} if after.shadow is not None else {}
    return changed


def _route_json(route: Route) -> dict[str, Any]:
    return asdict(route) | {"shares": [[name, share] for name, share in route.shares]}


def _route(values: Mapping[str, Any]) -> Route:
    return Route(
        **{
            **values,
            "shares": tuple((name, share) for name, share in values["shares"]),
            "shadow": Shadow(**values["shadow"]) if values["shadow"] else None,
            "guard": Guard(**values["guard"]),
        }
    )
