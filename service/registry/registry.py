"""Every read and every change of what the fleet serves, each in one transaction, each change in the audit log.

Owns what may follow what. Does not own carrying a change out (rollout/), nor reading checkpoints. Blocking: callers on
an event loop use a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.orm import Session, aliased

from service.errors import ConflictError
from service.registry.database import BareStatement, unavailable_if_lost
from service.registry.operations import OperationTransactions, is_changed_by_an_operation
from service.registry.records import (
    AuditEntry,
    Fleet,
    Gateway,
    Heard,
    Placement,
    PolicyRecord,
    RevisionRecord,
    Route,
)
from service.registry.rows import (
    policy_of,
    policy_row,
    read_fleet,
    revision_of,
    revision_row,
    route_json,
    to_entry,
    to_placement,
    to_revision,
)
from service.registry.states import RevisionState
from service.registry.tables import AuditRow, FleetRow, GatewayRow, PlacementRow, PolicyRow, RevisionRow
from service.registry.tokens import TokenTransactions
from service.registry.transactions import SUCCEEDED


class Registry(TokenTransactions, OperationTransactions):
    """One database. Thread-safe; every method may raise RegistryUnavailableError."""

    @cached_property
    def _generation(self) -> BareStatement:
        return BareStatement(select(FleetRow.generation), self._engine)

    @cached_property
    def _touching(self) -> BareStatement:
        num_gateways = select(func.count()).select_from(aliased(GatewayRow)).scalar_subquery()
        beating = update(GatewayRow).where(GatewayRow.gateway_id == bindparam("gateway"))
        heard = select(FleetRow.generation).scalar_subquery(), num_gateways
        return BareStatement(beating.values(beats=GatewayRow.beats + 1).returning(*heard), self._engine)

    # What is served.

    def generation(self) -> int:
        """Asked several times a second by every gateway, so past SQLAlchemy's own layers: a tenth of the time."""
        with unavailable_if_lost(), self._engine.connect() as connection:
            row = self._generation.row(connection)
            assert row is not None  # the first migration wrote it
            return row[0]

    def fleet(self) -> Fleet:
        with self._reading() as session:
            return read_fleet(session)

    def policy(self, policy: str) -> PolicyRecord:
        """Raises UnknownPolicyError."""
        return policy_of(self.fleet(), policy)

    def revision(self, policy: str, revision: str) -> RevisionRecord:
        """Raises UnknownPolicyError, UnknownRevisionError."""
        return revision_of(self.policy(policy), revision)

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
                return to_revision(known)
            if session.get(PolicyRow, policy) is None:
                session.add(
                    PolicyRow(name=policy, route=None, route_changed_at=None, observation_map={}, created_at=now)
                )
            row = session.get(RevisionRow, (policy, revision))
            if row is None:
                last = session.scalar(select(func.max(RevisionRow.number)).filter_by(policy=policy))
                row = RevisionRow(
                    policy=policy,
                    revision=revision,
                    number=0 if last is None else last + 1,
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
            return to_revision(row)

    def set_state(
        self,
        policy: str,
        revision: str,
        state: RevisionState,
        *,
        error: str = "",
        actor: str,
        only_as: RevisionRecord | None = None,
        operation_id: str = "",
        only_idle: bool = False,
    ) -> None:
        """Raises ConflictError for a change that there is not, and where the revision is no longer as in `only_as`.

        Also when the operation that asks has ended, or, with `only_idle`, while one changes what the policy serves.
        """
        with self._changing() as session:
            self._check_operation(session, policy, operation_id, only_idle=only_idle)
            row = revision_row(session, policy, revision)
            if only_as is not None and to_revision(row) != only_as:
                raise ConflictError(f"revision {revision} is {row.state} and has changed since it was {only_as.state}")
            self._move(row, state, error)
            self._note(session, actor, str(state), policy, revision, revision, {}, outcome=error or SUCCEEDED)

    def prove_again(self, policy: str, revision: str, *, operation_id: str) -> RevisionRecord:
        """Has every gateway load it where that failed, and probe it where it did not; `attempt` is the new one's."""
        with self._changing() as session:
            self._check_operation(session, policy, operation_id)
            row = revision_row(session, policy, revision)
            row.attempt += 1
            session.flush()
            return to_revision(row)

    def keep(self, policy: str, revision: str, *, actor: str, operation_id: str) -> None:
        """One that drains stays loaded once it has; nothing else changes. Raises as `set_state` does."""
        with self._changing() as session:
            self._check_operation(session, policy, operation_id)
            row = revision_row(session, policy, revision)
            if row.state == RevisionState.DRAINING and not row.kept:
                row.kept = True
                self._note(session, actor, "keep", policy, revision, revision, {})

    def change_route(
        self,
        policy: str,
        change: Callable[[PolicyRecord], Route | None],
        *,
        actor: str,
        action: str,
        detail: Mapping[str, Any] | None = None,
        operation_id: str = "",
    ) -> PolicyRecord:
        """Puts `change(now)` in place of a policy's route, and moves revisions between ready, serving and draining.

        None ends serving: all that is loaded drains. Raises ConflictError when a revision that is to take traffic is
        not ready or the operation that asks has ended, and what `change` raises.
        """
        with self._changing() as session:
            self._check_operation(session, policy, operation_id)
            before = policy_of(read_fleet(session), policy)
            route = change(before)
            old = before.route
            if route is not None:
                for name in (*route.revisions, *([route.shadow.revision] if route.shadow else [])):
                    if not revision_of(before, name).state.answers:
                        raise ConflictError(
                            f"revision {name} is {before.revisions[name].state}, expected it to be ready"
                        )
            for name, record in before.revisions.items():
                if (state := _state_under(route, old, record)) is not record.state:
                    self._move(revision_row(session, policy, name), state, "")
                elif record.kept and route is None:
                    revision_row(session, policy, name).kept = False
            row = policy_row(session, policy)
            changes = old.changes if old is not None else 0
            if old is None or route is None or route.shares != old.shares:
                changes, row.route_changed_at = changes + 1, self._now()
            if row.first_served_at is None and route is not None:
                row.first_served_at = self._now()
            if route is not None:
                # What an operation has announced ends with its own change alone.
                route = replace(route, switching=route.switching and not operation_id, changes=changes)
            row.route = route_json(route) if route is not None else None
            noted = {**(detail or {}), **_changed(old, route)}
            self._note(
                session,
                actor,
                action,
                policy,
                old.stable if old is not None else "",
                route.stable if route is not None else "",
                noted,
            )
            session.flush()
            return policy_of(read_fleet(session), policy)

    def announce(self, policy: str, *, switching: bool, operation_id: str = "", only_idle: bool = False) -> int:
        """Says that a policy's route is about to change, or is not after all. Returns the fleet's generation.

        Raises ConflictError when the operation that asks has ended, or, with `only_idle`, while one runs.
        """
        with self._changing() as session:
            self._check_operation(session, policy, operation_id, only_idle=only_idle)
            row = session.get(PolicyRow, policy)
            if row is not None and row.route:
                row.route = {**row.route, "switching": switching}
            return session.scalars(select(FleetRow.generation)).one()

    def set_observation_map(self, policy: str, observation_map: Mapping[str, Any], *, actor: str) -> None:
        with self._changing() as session:
            policy_row(session, policy).observation_map = dict(observation_map)
            self._note(session, actor, "configure", policy, "", "", {"observation_map": dict(observation_map)})

    def delete(self, policy: str, revision: str, *, actor: str) -> None:
        """Forgets a revision that nothing has loaded. Its files stay where they are."""
        with self._changing() as session:
            row = revision_row(session, policy, revision)
            if RevisionState(row.state).wanted:
                raise ConflictError(f"revision {revision} is {row.state}, expected it to be unloaded first")
            session.execute(delete(PlacementRow).filter_by(policy=policy, revision=revision))
            session.delete(row)
            its_policy = policy_row(session, policy)
            if its_policy.route and its_policy.route.get("previous") == revision:
                its_policy.route = {**its_policy.route, "previous": ""}
            self._note(session, actor, "delete", policy, revision, "", {})

    def delete_policy(self, policy: str, *, actor: str) -> None:
        """Forgets a policy that serves nothing, its revisions and its observation map. Files stay where they are."""
        with self._changing() as session:
            record = policy_of(read_fleet(session), policy)
            if record.route is not None:
                raise ConflictError(f"policy {policy!r} serves {record.route.stable}, expected it to be retired first")
            if is_changed_by_an_operation(session, policy):
                raise ConflictError(f"an operation of policy {policy!r} runs, expected it to end, or to be cancelled")
            for revision in record.revisions.values():
                if revision.state.wanted:
                    raise ConflictError(
                        f"revision {revision.revision} is {revision.state}, expected it to be unloaded first"
                    )
            session.execute(delete(PlacementRow).filter_by(policy=policy))
            session.execute(delete(RevisionRow).filter_by(policy=policy))
            session.execute(delete(PolicyRow).filter_by(name=policy))
            self._note(session, actor, "delete policy", policy, "", "", {"revisions": [*record.revisions]})

    # Who did what.

    def audit(self, policy: str = "", *, before: int | None = None, most: int = 100) -> tuple[AuditEntry, ...]:
        """The newest first; `before` is the number of an entry, to go on from."""
        query = select(AuditRow).order_by(AuditRow.number.desc()).limit(most)
        if policy:
            query = query.filter_by(policy=policy)
        if before is not None:
            query = query.where(AuditRow.number < before)
        with self._reading() as session:
            return tuple(to_entry(row) for row in session.scalars(query))

    def audited_policies(self) -> tuple[str, ...]:
        """Names that the log knows, also of policies that were deleted; sorted."""
        with self._reading() as session:
            return tuple(
                session.scalars(select(AuditRow.policy).where(AuditRow.policy != "").distinct().order_by("policy"))
            )

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
                each.state, each.error = placement.state, placement.error
                each.attempt, each.num_in_progress = placement.attempt, placement.num_in_progress
                each.tally = asdict(placement.tally) if placement.tally is not None else None
            for gone in known.values():
                session.delete(gone)
            return Heard(
                generation=session.scalars(select(FleetRow.generation)).one(),
                num_gateways=session.scalars(select(func.count()).select_from(GatewayRow)).one(),
            )

    def touch(self, gateway_id: str) -> Heard | None:
        """A heartbeat that says nothing new, for a fraction of `beat`'s cost; None when the gateway must say all."""
        with unavailable_if_lost(), self._engine.connect() as connection:
            row = self._touching.row(connection, gateway=gateway_id)
            return Heard(generation=row[0], num_gateways=row[1]) if row is not None else None

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
                to_placement(row)
                for row in session.scalars(select(PlacementRow).filter_by(policy=policy, revision=revision))
            )

    def _check_operation(self, session: Session, policy: str, operation_id: str, *, only_idle: bool = False) -> None:
        """What an operation that has ended still asks for is refused; its process may not have heard."""
        if operation_id:
            self._require_running(session, operation_id)
        if only_idle and is_changed_by_an_operation(session, policy):
            raise ConflictError(f"an operation of policy {policy!r} runs")

    def _move(self, row: RevisionRow, state: RevisionState, error: str) -> None:
        if not RevisionState(row.state).may_become(state):
            raise ConflictError(f"revision {row.revision} is {row.state}, which cannot become {state}")
        row.state, row.error, row.kept, row.changed_at = state, error, False, self._now()
        if state is RevisionState.LOADING:
            row.attempt += 1


def _state_under(route: Route | None, before: Route | None, record: RevisionRecord) -> RevisionState:
    """What becomes of a revision when a route takes the place of the one before."""
    name = record.revision
    if route is not None and name in route.revisions:
        return RevisionState.SERVING
    is_shadow = route is not None and route.shadow is not None and name == route.shadow.revision
    # One that was kept for a roll-back is given up with the route that would have gone back to it.
    was_kept = before is not None and before.keep_previous and name == before.previous
    is_given_up = route is None or (was_kept and name != route.previous and not is_shadow)
    match record.state:
        case RevisionState.SERVING:
            return RevisionState.DRAINING
        case RevisionState.READY if is_given_up:
            return RevisionState.DRAINING
        case state:
            return state


def _changed(before: Route | None, after: Route | None) -> dict[str, Any]:
    """What an audit entry cannot say by two revisions: the shares of a split, one's end included, and of a shadow."""
    changed: dict[str, Any] = {}
    if before is not None and after is not None and before.shares != after.shares:
        is_split = max(len(before.shares), len(after.shares)) > 1
        changed |= {"shares": dict(after.shares)} if is_split else {}
    shadow = after.shadow if after is not None else None
    if shadow != (before.shadow if before is not None else None):
        changed["shadow"] = {shadow.revision: shadow.share} if shadow is not None else {}
    return changed
