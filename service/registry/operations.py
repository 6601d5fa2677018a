"""Operations in the registry: one at a time for a policy, begun, taken further and ended, each in one transaction.

Owns which may run beside which, and what ending one before its time leaves behind. Does not own carrying one out
(rollout/): an operation that has ended here changes nothing any more, whatever its process still does. Blocking:
callers on an event loop use a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import ConflictError, UnknownOperationError
from service.registry.records import Operation, OperationState, PolicyRecord
from service.registry.rows import policy_of, read_fleet, to_operation
from service.registry.states import RevisionState
from service.registry.tables import OperationRow, PolicyRow, RevisionRow
from service.registry.transactions import Transactions

REGISTER = "register"


class OperationTransactions(Transactions):
    """The registry's part for operations."""

    def start_operation(
        self,
        *,
        kind: str,
        policy: str,
        revision: str = "",
        actor: str,
        gateway_id: str,
        overtakes: Collection[str] = (),
        target: Callable[[PolicyRecord], str] | None = None,
    ) -> Operation:
        """Raises ConflictError while another one changes what the policy serves, which registering does not.

        One of a kind in `overtakes` is ended instead. `target` finds the revision, by how the policy is in the moment
        of starting, and raises what it likes.
        """
        with self._changing(bump=bool(overtakes)) as session:
            if target is not None:
                revision = target(policy_of(read_fleet(session), policy))
            running = _running(session, policy)
            if running is not None and kind != REGISTER:
                if running.kind not in overtakes:
                    raise ConflictError(
                        f"{running.kind} of policy {policy!r} runs as operation {running.operation_id}, expected it to "
                        "end, or to be cancelled"
                    )
                self._stop(session, running, f"a {kind} by {actor} took its place")
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
            return to_operation(row)

    def advance(self, operation_id: str, step: str, *, revision: str = "") -> None:
        """`revision` is what an operation turned out to be about, if that was not known at first.

        Raises ConflictError once it has ended.
        """
        with self._changing(bump=False) as session:
            row = self._require_running(session, operation_id)
            row.steps, row.changed_at = [*row.steps, step], self._now()
            row.revision = revision or row.revision

    def end_operation(self, operation_id: str, *, error: str = "") -> Operation:
        """An operation that has ended stays as it ended."""
        with self._changing(bump=False) as session:
            row = self._operation_row(session, operation_id)
            if row.state == OperationState.RUNNING:
                self._end(session, row, error)
            return to_operation(row)

    def cancel_operation(self, operation_id: str, *, actor: str) -> Operation:
        """Ends it now; what it was loading is given up, what it had changed stays changed.

        Raises UnknownOperationError, or ConflictError for one that has ended.
        """
        with self._changing() as session:
            row = self._require_running(session, operation_id)
            detail = {"operation": row.operation_id, "kind": row.kind}
            self._note(session, actor, "cancel", row.policy, "", row.revision, detail)
            self._stop(session, row, f"{actor} cancelled it")
            return to_operation(row)

    def operation(self, operation_id: str) -> Operation:
        """Raises UnknownOperationError."""
        with self._reading() as session:
            return to_operation(self._operation_row(session, operation_id))

    def operations(self, policy: str = "", *, running: bool = False, most: int = 100) -> tuple[Operation, ...]:
        """The newest first."""
        query = select(OperationRow).order_by(OperationRow.created_at.desc()).limit(most)
        if policy:
            query = query.filter_by(policy=policy)
        if running:
            query = query.filter_by(state=str(OperationState.RUNNING))
        with self._reading() as session:
            return tuple(to_operation(row) for row in session.scalars(query))

    def _stop(self, session: Session, row: OperationRow, error: str) -> None:
        """Before its time: nobody else would end what it has begun."""
        self._end(session, row, error)
        if row.kind == REGISTER:
            return
        policy = session.get(PolicyRow, row.policy)
        if policy is not None and policy.route:
            policy.route = {**policy.route, "switching": False}
        # One operation of a policy at a time: what is being loaded is its own.
        loading = (str(RevisionState.LOADING), str(RevisionState.WARMING))
        for revision in session.scalars(
            select(RevisionRow).filter_by(policy=row.policy).where(RevisionRow.state.in_(loading))
        ):
            revision.state, revision.changed_at = RevisionState.UNLOADED, self._now()
            self._note(
                session, row.actor, str(RevisionState.UNLOADED), row.policy, revision.revision, revision.revision, {}
            )

    def _end(self, session: Session, row: OperationRow, error: str) -> None:
        row.state = OperationState.FAILED if error else OperationState.SUCCEEDED
        row.error, row.changed_at = error, self._now()
        if error:
            self._note(session, row.actor, row.kind, row.policy, "", row.revision, {}, outcome=error)

    def _require_running(self, session: Session, operation_id: str) -> OperationRow:
        """Raises UnknownOperationError, ConflictError."""
        row = self._operation_row(session, operation_id)
        if row.state != OperationState.RUNNING:
            why = f": {row.error}" if row.error else ""
            raise ConflictError(f"operation {operation_id} has {row.state}{why}, expected it to run still")
        return row

    def _operation_row(self, session: Session, operation_id: str) -> OperationRow:
        row = session.get(OperationRow, operation_id)
        if row is None:
            raise UnknownOperationError(operation_id)
        return row


def is_changed_by_an_operation(session: Session, policy: str) -> bool:
    """Whether an operation that changes what the policy serves runs."""
    return _running(session, policy) is not None


def _running(session: Session, policy: str) -> OperationRow | None:
    running = select(OperationRow).filter_by(policy=policy, state=str(OperationState.RUNNING))
    return session.scalars(running.where(OperationRow.kind != REGISTER)).first()
