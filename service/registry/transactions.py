"""One transaction against the registry's database, and the audit entry that goes with every change.

Owns how reads and changes begin and end. Does not own what is read or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from service.registry.database import reader_of, unavailable_if_lost
from service.registry.tables import AuditRow, FleetRow

SUCCEEDED = "succeeded"


class Transactions:
    """What everything that reads or changes the registry builds on. Thread-safe."""

    def __init__(self, engine: Engine, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._reader = reader_of(engine)
        self._now = now

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with unavailable_if_lost(), Session(self._reader) as session, session.begin():
            yield session

    @contextmanager
    def _changing(self, *, bump: bool = True) -> Iterator[Session]:
        """Changes come one after another: each begins by writing the fleet's row, which locks out the others."""
        with unavailable_if_lost(), Session(self._engine) as session, session.begin():
            session.execute(update(FleetRow).values(generation=FleetRow.generation + (1 if bump else 0)))
            yield session

    def _note(
        self,
        session: Session,
        actor: str,
        action: str,
        policy: str,
        from_revision: str,
        to_revision: str,
        detail: dict[str, Any],
        outcome: str = SUCCEEDED,
    ) -> None:
        session.add(
            AuditRow(
                at=self._now(),
                actor=actor,
                action=action,
                policy=policy,
                from_revision=from_revision,
                to_revision=to_revision,
                outcome=outcome,
                detail=detail,
            )
        )
