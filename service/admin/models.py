"""What the admin plane takes and answers, as JSON.

Owns the shape of requests and responses, and their making from what the gateway and the registry say. Does not own the
facts.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from premotor.v1 import policy_pb2
from service.registry import (
    AuditEntry,
    Gateway,
    Guard,
    Operation,
    OperationState,
    Placement,
    PolicyRecord,
    RevisionRecord,
    RevisionState,
)
from service.revision import Revision
from service.rollout.operations import Promotion


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Liveness(_Response):
    status: Literal["live"] = "live"


class PolicyReadiness(_Response):
    policy: str
    # The revision that answers requests which pin none.
    revision: str
    ready: bool


class Readiness(_Response):
    # True when every policy is.
    ready: bool
    policies: list[PolicyReadiness]


class CameraDescription(_Response):
    name: str
    height: int
    width: int


class GroupDescription(_Response):
    name: str
    dim: int
    unit: str
    kind: str
    representation: str
    # Per dimension; empty means unbounded.
    lower_limit: list[float]
    upper_limit: list[float]
    # Of absolute action groups: the largest change from one action of a chunk to the next.
    step_limit: list[float]

    @classmethod
    def of(cls, group: policy_pb2.Group) -> Self:
        return cls(
            name=group.name,
            dim=group.dim,
            unit=group.unit,
            kind=policy_pb2.Group.Kind.Name(group.kind).removeprefix("KIND_").lower(),
            representation=(
                policy_pb2.Group.Representation.Name(group.representation).removeprefix("REPRESENTATION_").lower()
            ),
            lower_limit=list(group.lower_limit),
            upper_limit=list(group.upper_limit),
            step_limit=list(group.step_limit),
        )


class EmbodimentDescription(_Response):
    name: str
    cameras: list[CameraDescription]
    state: list[GroupDescription]
    action: list[GroupDescription]
    control_rate_hz: float

    @classmethod
    def of(cls, embodiment: policy_pb2.Embodiment) -> Self:
        return cls(
            name=embodiment.name,
            cameras=[
                CameraDescription(name=camera.name, height=camera.height, width=camera.width)
                for camera in embodiment.cameras
            ],
            state=[GroupDescription.of(group) for group in embodiment.state],
            action=[GroupDescription.of(group) for group in embodiment.action],
            control_rate_hz=embodiment.control_rate_hz,
        )


class PolicyDescription(_Response):
    name: str
    revision: str
    variant: str
    schema_digest: str
    embodiments: list[EmbodimentDescription]
    history_steps: int
    action_horizon: int
    execution_horizon: int
    num_inference_steps: int
    max_inference_steps: int

    @classmethod
    def of(cls, description: policy_pb2.Policy) -> Self:
        return cls(
            name=description.name,
            revision=description.revision,
            variant=description.variant,
            schema_digest=description.schema_digest,
            embodiments=[EmbodimentDescription.of(embodiment) for embodiment in description.embodiments],
            history_steps=description.history_steps,
            action_horizon=description.action_horizon,
            execution_horizon=description.execution_horizon,
            num_inference_steps=description.num_inference_steps,
            max_inference_steps=description.max_inference_steps,
        )


class PolicyList(_Response):
    # Ordered by name.
    policies: list[PolicyDescription]


class RevisionDescription(_Response):
    revision: str
    variant: str
    schema_digest: str
    # Whether it answers requests that pin no revision.
    serving: bool
    ready: bool

    @classmethod
    def of(cls, revision: Revision, *, serving: bool, ready: bool) -> Self:
        return cls(
            revision=revision.revision,
            variant=revision.description.variant,
            schema_digest=revision.description.schema_digest,
            serving=serving,
            ready=ready,
        )


class RevisionList(_Response):
    # The serving one first.
    revisions: list[RevisionDescription]


class Problem(_Response):
    """Why a request has no answer."""

    message: str
    # The parameter at fault; empty when none is.
    field: str


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GuardSettings(_Request):
    """Limits over the last `window_s`; null leaves one out."""

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
    guard: GuardSettings | None = None

    def to_promotion(self) -> Promotion:
        return Promotion(
            move_episodes=self.move_episodes,
            keep_previous=self.keep_previous,
            guard=self.guard.to_guard() if self.guard else None,
        )


class RollBackRequest(_Request):
    # For the audit log.
    reason: Annotated[str, Field(max_length=1024)] = ""


class SplitRequest(_Request):
    # Revision to its share of new episodes, 0 to 1; what is left goes to the stable one.
    shares: Annotated[dict[str, float], Field(min_length=1, max_length=16)]
    guard: GuardSettings | None = None


class ShadowRequest(_Request):
    # Of the policy's requests, 0 to 1.
    share: Annotated[float, Field(ge=0, le=1)]


class RevisionStatus(_Response):
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


class ShadowStatus(_Response):
    revision: str
    share: float


class PolicyStatus(_Response):
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
            shadow=ShadowStatus(**asdict(route.shadow)) if route and route.shadow else None,
            guard=GuardSettings(**asdict(route.guard if route else Guard())),
            observation_map=dict(policy.observation_map),
            revisions=[
                RevisionStatus.of(record, share=shares.get(record.revision, 0.0))
                for record in policy.revisions.values()
            ],
        )


class PolicyStatusList(_Response):
    # Rises with every change.
    generation: int
    # Ordered by name.
    policies: list[PolicyStatus]


class OperationDescription(_Response):
    operation: str
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

    @classmethod
    def of(cls, operation: Operation) -> Self:
        return cls(
            operation=operation.operation_id,
            kind=operation.kind,
            policy=operation.policy,
            revision=operation.revision,
            actor=operation.actor,
            state=operation.state,
            steps=list(operation.steps),
            error=operation.error,
            created_at=operation.created_at,
            changed_at=operation.changed_at,
        )


class OperationList(_Response):
    operations: list[OperationDescription]


class AuditDescription(_Response):
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

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        return cls(**asdict(entry) | {"detail": dict(entry.detail)})


class AuditList(_Response):
    entries: list[AuditDescription]


class GatewayDescription(_Response):
    gateway: str
    address: str
    # The generation it routes by.
    generation: int
    started_at: datetime

    @classmethod
    def of(cls, gateway: Gateway) -> Self:
        return cls(
            gateway=gateway.gateway_id,
            address=gateway.address,
            generation=gateway.generation,
            started_at=gateway.started_at,
        )


class GatewayList(_Response):
    gateways: list[GatewayDescription]


class PlacementDescription(_Response):
    gateway: str
    state: RevisionState
    error: str
    # Episodes and requests that the revision still has to answer there.
    num_in_progress: int

    @classmethod
    def of(cls, placement: Placement) -> Self:
        return cls(
            gateway=placement.gateway_id,
            state=placement.state,
            error=placement.error,
            num_in_progress=placement.num_in_progress,
        )


class PlacementList(_Response):
    placements: list[PlacementDescription]
