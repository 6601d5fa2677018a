"""What the admin plane takes and answers of what the fleet agreed on, as JSON.

Owns the shape of requests and responses. Does not own the records of the registry, which most responses repeat field by
field: those are made by `model_validate` of the record.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from service.admin.models import ResponseModel
from service.registry import Guard, OperationState, PolicyRecord, RevisionRecord, RevisionState
from service.rollout.operations import Promotion


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GuardSettings(_Request):
    """Limits over the last `window_s` of all gateways together; null leaves one out."""

    max_error_rate: Annotated[float | None, Field(ge=0, le=1)] = None
    max_violation_rate: Annotated[float | None, Field(ge=0, le=1)] = None
    max_latency_p95_s: Annotated[float | None, Field(gt=0)] = None
    window_s: Annotated[float, Field(gt=0)] = 30.0
    min_requests: Annotated[int, Field(ge=1)] = 20
    # How long after a change it is watched.
    watch_s: Annotated[float, Field(gt=0)] = 600.0

    def to_guard(self) -> Guard:
        return Guard(**self.model_dump())


class RegisterRequest(_Request):
    # A directory below the store's root, or a URL.
    location: Annotated[str, Field(min_length=1, max_length=2048)]
    # Its digest or at least 12 digits of it; empty takes what is there.
    revision: Annotated[str, Field(pattern=r"^([0-9a-f]{12,64})?$")] = ""


class PromoteRequest(_Request):
    # Episodes in progress go on with the new revision at once.
    move_episodes: bool = False
    # The old revision stays loaded once it has drained.
    keep_previous: bool = False
    # Its schema digest may be another than that of what serves, which robots that play refuse.
    allow_schema_change: bool = False
    guard: GuardSettings | None = None

    def to_promotion(self) -> Promotion:
        return Promotion(
            move_episodes=self.move_episodes,
            keep_previous=self.keep_previous,
            allow_schema_change=self.allow_schema_change,
            guard=self.guard.to_guard() if self.guard else None,
        )


class RollBackRequest(_Request):
    # For the audit log.
    reason: Annotated[str, Field(max_length=1024)] = ""


class SplitRequest(_Request):
    # Revision to its share of new episodes, 0 to 1; what is left goes to the stable one.
    shares: Annotated[dict[str, float], Field(min_length=1, max_length=16)]
    # As for a promotion.
    allow_schema_change: bool = False
    guard: GuardSettings | None = None


class ShadowRequest(_Request):
    # Of the policy's requests, 0 to 1.
    share: Annotated[float, Field(ge=0, le=1)]


class RevisionStatus(ResponseModel):
    revision: str
    manifest_sha256: str
    location: str
    variant: str
    schema_digest: str
    num_bytes: int
    state: RevisionState
    # Why it failed; empty otherwise.
    error: str
    # Of new episodes.
    share: float
    registered_at: datetime
    changed_at: datetime

    @classmethod
    def of(cls, record: RevisionRecord, *, share: float) -> Self:
        return cls(
            revision=record.revision,
            manifest_sha256=record.manifest_sha256,
            location=record.location,
            variant=record.variant,
            schema_digest=record.schema_digest,
            num_bytes=record.num_bytes,
            state=record.state,
            error=record.error,
            share=share,
            registered_at=record.registered_at,
            changed_at=record.changed_at,
        )


class ShadowStatus(ResponseModel):
    revision: str
    share: float


class PolicyStatus(ResponseModel):
    name: str
    # Empty until a revision was promoted.
    stable: str
    previous: str
    shadow: ShadowStatus | None
    guard: GuardSettings
    observation_map: dict[str, Any]
    # In the order of their registration.
    revisions: list[RevisionStatus]

    @classmethod
    def of(cls, policy: PolicyRecord) -> Self:
        route = policy.route
        shares = dict(route.shares) if route else {}
        return cls(
            name=policy.name,
            stable=route.stable if route else "",
            previous=route.previous if route else "",
            shadow=ShadowStatus.model_validate(route.shadow) if route and route.shadow else None,
            guard=GuardSettings(**asdict(route.guard if route else Guard())),
            observation_map=dict(policy.observation_map),
            revisions=[
                RevisionStatus.of(record, share=shares.get(record.revision, 0.0))
                for record in policy.revisions.values()
            ],
        )


class PolicyStatusList(ResponseModel):
    # Rises with every change.
    generation: int
    # Ordered by name.
    policies: list[PolicyStatus]


class OperationDescription(ResponseModel):
    operation: Annotated[str, Field(validation_alias="operation_id")]
    kind: str
    policy: str
    revision: str
    actor: str
    state: OperationState
    # What was done so far.
    steps: list[str]
    # Why it failed; empty otherwise.
    error: str
    created_at: datetime
    changed_at: datetime


class OperationList(ResponseModel):
    operations: list[OperationDescription]


class AuditDescription(ResponseModel):
    number: int
    at: datetime
    actor: str
    action: str
    policy: str
    from_revision: str
    to_revision: str
    # "succeeded", or why not.
    outcome: str
    detail: dict[str, Any]


class AuditList(ResponseModel):
    entries: list[AuditDescription]


class GatewayDescription(ResponseModel):
    gateway: Annotated[str, Field(validation_alias="gateway_id")]
    address: str
    # The generation it routes by.
    generation: int
    started_at: datetime


class GatewayList(ResponseModel):
    gateways: list[GatewayDescription]


class PlacementDescription(ResponseModel):
    gateway: Annotated[str, Field(validation_alias="gateway_id")]
    state: RevisionState
    error: str
    # Episodes and requests that the revision still has to answer there.
    num_in_progress: int


class PlacementList(ResponseModel):
    placements: list[PlacementDescription]
