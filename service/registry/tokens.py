"""Tokens in the registry: every read and change of them, each in one transaction, each change in the audit log.

Sees digests alone, never a secret. Does not own what a token may do (credentials/). Blocking: callers on an event loop
use a thread.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.credentials.token import Caps, Scope, TokenRecord, TokenSpec
from service.errors import ConflictError, UnknownTokenError
from service.registry.tables import TokenRow
from service.registry.transactions import Transactions


class TokenTransactions(Transactions):
    """The registry's part for tokens. Every change raises the fleet's generation, which is how gateways hear of it."""

    def tokens(self) -> tuple[TokenRecord, ...]:
        """All that were ever created, the oldest first."""
        with self._reading() as session:
            return tuple(
                _record(row)
                for row in session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.token_id))
            )

    def create_token(self, spec: TokenSpec, *, token_id: str, secret_sha256: str, actor: str) -> TokenRecord:
        """Raises ConflictError for a time of expiry that has passed."""
        with self._changing() as session:
            now = self._now()
            if spec.expires_at is not None and spec.expires_at <= now:
                raise ConflictError(f"expires_at is {spec.expires_at.isoformat()}, expected a time to come")
            row = TokenRow(
                token_id=token_id,
                name=spec.name,
                secret_sha256=secret_sha256,
                previous_sha256="",
                previous_until=None,
                scopes=sorted(spec.scopes),
                policies=list(spec.policies),
                created_at=now,
                expires_at=spec.expires_at,
                revoked_at=None,
                max_requests_per_s=spec.caps.max_requests_per_s,
                max_in_flight=spec.caps.max_in_flight,
                max_streams=spec.caps.max_streams,
            )
            session.add(row)
            detail = {
                "scopes": row.scopes,
                "policies": row.policies,
                "expires_at": spec.expires_at.isoformat() if spec.expires_at else None,
            }
            self._note_token(session, actor, "create-token", row, detail)
            session.flush()
            return _record(row)

    def rotate_token(self, token_id: str, *, secret_sha256: str, grace_s: float, actor: str) -> TokenRecord:
        """Puts a new secret in place; the old one stays good for `grace_s`. Raises UnknownTokenError, ConflictError."""
        with self._changing() as session:
            row = self._token_row(session, token_id)
            if row.revoked_at is not None:
                raise ConflictError(f"token {token_id} is revoked, expected one that is not")
            # One grace at a time: a secret from before the last rotation ends with this one.
            row.previous_sha256 = row.secret_sha256 if grace_s > 0 else ""
            row.previous_until = self._now() + timedelta(seconds=grace_s) if grace_s > 0 else None
            row.secret_sha256 = secret_sha256
            self._note_token(session, actor, "rotate-token", row, {"grace_s": grace_s})
            session.flush()
            return _record(row)

    def revoke_token(self, token_id: str, *, actor: str) -> TokenRecord:
        """For good. Doing so again changes nothing. Raises UnknownTokenError."""
        with self._changing() as session:
            row = self._token_row(session, token_id)
            if row.revoked_at is None:
                row.revoked_at = self._now()
                self._note_token(session, actor, "revoke-token", row, {})
                session.flush()
            return _record(row)

    def _token_row(self, session: Session, token_id: str) -> TokenRow:
        row = session.get(TokenRow, token_id)
        if row is None:
            raise UnknownTokenError(token_id)
        return row

    def _note_token(self, session: Session, actor: str, action: str, row: TokenRow, detail: dict[str, Any]) -> None:
        self._note(session, actor, action, "", "", "", {"token_id": row.token_id, "name": row.name, **detail})


def _record(row: TokenRow) -> TokenRecord:
    return TokenRecord(
        token_id=row.token_id,
        name=row.name,
        secret_sha256=row.secret_sha256,
        previous_sha256=row.previous_sha256,
        previous_until=row.previous_until,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        policies=tuple(row.policies),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        caps=Caps(
            max_requests_per_s=row.max_requests_per_s, max_in_flight=row.max_in_flight, max_streams=row.max_streams
        ),
    )
