"""Tokens as JSON: what is asked for, and what is said of them. Only one answer holds a secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from service.credentials import Caps, Scope, TokenRecord, TokenSpec


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NewToken(_Message):
    name: str
    scopes: list[Scope]
    # Empty for all policies; only for scope infer.
    policies: list[str] = Field(default_factory=list)
    # None never expires.
    expires_at: AwareDatetime | None = None
    # On each gateway. None is no bound on the rate, and 128 in flight and streams.
    max_requests_per_s: float | None = None
    max_in_flight: int | None = None
    max_streams: int | None = None

    def spec(self) -> TokenSpec:
        """Raises ValueError for what no token can be."""
        return TokenSpec(
            name=self.name,
            scopes=frozenset(self.scopes),
            policies=tuple(self.policies),
            expires_at=_in_utc(self.expires_at) if self.expires_at is not None else None,
            caps=Caps(
                max_requests_per_s=self.max_requests_per_s,
                max_in_flight=self.max_in_flight,
                max_streams=self.max_streams,
            ),
        )


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"expires_at is {time.isoformat()}, expected a time within the years 1 to 9999") from None


class TokenRotation(_Message):
    # How long the old secret stays good beside the new one.
    grace_s: float = 0.0


class TokenDescription(_Message):
    token_id: str
    name: str
    scopes: list[Scope]
    policies: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    # Until when the secret from before the last rotation is good; None when there is none.
    previous_until: datetime | None
    max_requests_per_s: float | None
    max_in_flight: int | None
    max_streams: int | None

    @classmethod
    def of(cls, token: TokenRecord) -> Self:
        return cls(
            token_id=token.token_id,
            name=token.name,
            scopes=sorted(token.scopes),
            policies=list(token.policies),
            created_at=token.created_at,
            expires_at=token.expires_at,
            revoked_at=token.revoked_at,
            previous_until=token.previous_until,
            max_requests_per_s=token.caps.max_requests_per_s,
            max_in_flight=token.caps.max_in_flight,
            max_streams=token.caps.max_streams,
        )


class TokenList(_Message):
    tokens: list[TokenDescription]


class IssuedToken(_Message):
    """The one answer that holds a token."""

    token: str
    description: TokenDescription
