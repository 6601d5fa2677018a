"""The registry's tables. A change here goes with a migration in migrations/versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    String,
    Text,
    TypeDecorator,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """SQLite forgets the zone; all are UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: JSON(), list[Any]: JSON()}  # noqa: RUF012  # SQLAlchemy's name and form


class FleetRow(Table):
    """One row. Whoever changes the fleet writes it first, so that changes come one after another."""

    __tablename__ = "fleet"
    fleet_id: Mapped[int] = mapped_column(primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger)


class PolicyRow(Table):
    __tablename__ = "policies"
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    route: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # When who takes new episodes last changed.
    route_changed_at: Mapped[datetime | None]
    first_served_at: Mapped[datetime | None]
    observation_map: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class RevisionRow(Table):
    __tablename__ = "revisions"
    policy: Mapped[str] = mapped_column(ForeignKey("policies.name"), primary_key=True)
    revision: Mapped[str] = mapped_column(String(12), primary_key=True)
    number: Mapped[int] = mapped_column(Integer)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    location: Mapped[str] = mapped_column(Text)
    variant: Mapped[str] = mapped_column(String(128))
    schema_digest: Mapped[str] = mapped_column(String(64))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[str] = mapped_column(Text)
    # Rises whenever all gateways are to load or probe it anew.
    attempt: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    # Drains, and is to stay loaded once it has.
    kept: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    registered_at: Mapped[datetime]
    changed_at: Mapped[datetime]


class GatewayRow(Table):
    __tablename__ = "gateways"
    gateway_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    address: Mapped[str] = mapped_column(String(256))
    beats: Mapped[int] = mapped_column(BigInteger)
    generation: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[datetime]


class PlacementRow(Table):
    __tablename__ = "placements"
    gateway_id: Mapped[str] = mapped_column(ForeignKey("gateways.gateway_id", ondelete="CASCADE"), primary_key=True)
    policy: Mapped[str] = mapped_column(String(128), primary_key=True)
    revision: Mapped[str] = mapped_column(String(12), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[str] = mapped_column(Text)
    # Of the revision, that this is said of.
    attempt: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    num_in_progress: Mapped[int] = mapped_column(Integer)
    # While a guard judges the revision.
    tally: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class OperationRow(Table):
    __tablename__ = "operations"
    operation_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    policy: Mapped[str] = mapped_column(String(128))
    revision: Mapped[str] = mapped_column(String(12))
    actor: Mapped[str] = mapped_column(String(128))
    gateway_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    steps: Mapped[list[Any]]
    error: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)
    changed_at: Mapped[datetime]


class AuditRow(Table):
    """Append-only: triggers refuse any other change."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(32))
    policy: Mapped[str] = mapped_column(String(128), index=True)
    from_revision: Mapped[str] = mapped_column(String(12))
    to_revision: Mapped[str] = mapped_column(String(12))
    outcome: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]]


class TokenRow(Table):
    """A credential by the sha256 of its secret, never the secret. An empty list of policies means all of them."""

    __tablename__ = "tokens"
    token_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    # The secret before the last rotation, empty when there is none, and until when it is good.
    previous_sha256: Mapped[str] = mapped_column(String(64))
    previous_until: Mapped[datetime | None]
    scopes: Mapped[list[Any]]
    policies: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    # A rate is requests per second; None is unlimited.
    max_requests_per_s: Mapped[float | None] = mapped_column(Float)
    max_in_flight: Mapped[int | None]
    max_streams: Mapped[int | None]
