"""What the admin plane answers of what is served here, as JSON.

Owns the shape of responses and their making from what the gateway says. Does not own the facts, nor what the fleet has
agreed on (fleet_models.py).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from premotor.v1 import policy_pb2
from service.revision import Revision


class ResponseModel(BaseModel):
    """Made of its fields, or of a record that has them by the same names."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Liveness(ResponseModel):
    status: Literal["live"] = "live"


class PolicyReadiness(ResponseModel):
    policy: str
    # The revision that answers requests which pin none; empty while none is here.
    revision: str
    ready: bool


class RegistryContact(StrEnum):
    REACHABLE = "reachable"
    # Degraded: what was served is served on, and nothing can be changed from here.
    LOST = "lost"
    # For longer than the lease: episodes in progress go on, none begins.
    CUT_OFF = "cut off"


class Readiness(ResponseModel):
    # True when every policy is, and episodes may begin.
    ready: bool
    registry: RegistryContact
    # For how long episodes may begin if the registry stays away; null for a gateway that is alone.
    lease_s: float | None
    policies: list[PolicyReadiness]


class CameraDescription(ResponseModel):
    name: str
    height: int
    width: int


class GroupDescription(ResponseModel):
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


class EmbodimentDescription(ResponseModel):
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


class PolicyDescription(ResponseModel):
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


class PolicyList(ResponseModel):
    # Ordered by name.
    policies: list[PolicyDescription]


class RevisionDescription(ResponseModel):
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


class RevisionList(ResponseModel):
    # The serving one first.
    revisions: list[RevisionDescription]


class Problem(ResponseModel):
    """Why a request has no answer."""

    message: str
    # The parameter at fault; empty when none is.
    field: str
