"""Rows of the registry as the records they stand for, and back.

Owns the reading of rows within a transaction that somebody else began. Does not own what may follow what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import UnknownPolicyError, UnknownRevisionError
from service.registry.records import (
    AuditEntry,
    Fleet,
    Guard,
    Operation,
    OperationState,
    Placement,
    PolicyRecord,
    RevisionRecord,
    Route,
    Shadow,
    Tally,
)
from service.registry.states import RevisionState
from service.registry.tables import AuditRow, FleetRow, OperationRow, PlacementRow, PolicyRow, RevisionRow


def read_fleet(session: Session) -> Fleet:
    session.flush()
    generation = session.scalars(select(FleetRow.generation)).one()
    revisions: dict[str, dict[str, RevisionRecord]] = {}
    for row in session.scalars(select(RevisionRow).order_by(RevisionRow.number)):
        revisions.setdefault(row.policy, {})[row.revision] = to_revision(row)
    return Fleet(
        generation=generation,
        policies={
            row.name: PolicyRecord(
                name=row.name,
                route=_to_route(row.route) if row.route else None,
                route_changed_at=row.route_changed_at,
                first_served_at=row.first_served_at,
                revisions=revisions.get(row.name, {}),
                observation_map=row.observation_map,
            )
            for row in session.scalars(select(PolicyRow).order_by(PolicyRow.name))
        },
    )


def policy_of(fleet: Fleet, policy: str) -> PolicyRecord:
    """Raises UnknownPolicyError."""
    try:
        return fleet.policies[policy]
    except KeyError:
        raise UnknownPolicyError(policy, fleet.policies) from None


def revision_of(policy: PolicyRecord, revision: str) -> RevisionRecord:
    """Raises UnknownRevisionError."""
    try:
        return policy.revisions[revision]
    except KeyError:
        raise UnknownRevisionError(policy.name, revision, policy.revisions) from None


def policy_row(session: Session, policy: str) -> PolicyRow:
    """Raises UnknownPolicyError."""
    row = session.get(PolicyRow, policy)
    if row is None:
        raise UnknownPolicyError(policy, session.scalars(select(PolicyRow.name)).all())
    return row


def revision_row(session: Session, policy: str, revision: str) -> RevisionRow:
    """Raises UnknownPolicyError, UnknownRevisionError."""
    row = session.get(RevisionRow, (policy, revision))
    if row is None:
        raise UnknownRevisionError(policy, revision, policy_of(read_fleet(session), policy).revisions)
    return row


def to_revision(row: RevisionRow) -> RevisionRecord:
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
        attempt=row.attempt,
        kept=row.kept,
        registered_at=row.registered_at,
        changed_at=row.changed_at,
    )


def to_placement(row: PlacementRow) -> Placement:
    return Placement(
        gateway_id=row.gateway_id,
        policy=row.policy,
        revision=row.revision,
        state=RevisionState(row.state),
        error=row.error,
        attempt=row.attempt,
        num_in_progress=row.num_in_progress,
        tally=Tally(**{**row.tally, "guard": Guard(**row.tally["guard"])}) if row.tally else None,
    )


def to_operation(row: OperationRow) -> Operation:
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


def to_entry(row: AuditRow) -> AuditEntry:
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


def route_json(route: Route) -> dict[str, Any]:
    return asdict(route) | {"shares": [[name, share] for name, share in route.shares]}


def _to_route(values: Mapping[str, Any]) -> Route:
    return Route(
        **{
            **values,
            "shares": tuple((name, share) for name, share in values["shares"]),
            "shadow": Shadow(**values["shadow"]) if values["shadow"] else None,
            "guard": Guard(**values["guard"]),
        }
    )
