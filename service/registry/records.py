"""What the registry holds, as values: frozen, checked where they are made, free of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from service.registry.states import RevisionState


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A revision that is asked as well, for a share of the requests, and whose answers nobody plays."""

    revision: str
    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"shadow.share is {self.share}, expected more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When a revision that was just given traffic is rolled back without being asked; None leaves a limit out.

    Judged over the last `window_s` of all gateways together, once `min_requests` ended there, until `watch_s` after the
    change.
    """

    max_error_rate: float | None = None
    max_violation_rate: float | None = None
    max_latency_p95_s: float | None = None
    window_s: float = 30.0
    min_requests: int = 20
    watch_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_error_rate", "max_violation_rate"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"guard.{name} is {value}, expected 0 to 1")
        for name in ("max_latency_p95_s", "window_s", "min_requests", "watch_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"guard.{name} is {value}, expected more than 0")

    @property
    def watches(self) -> bool:
        return any(
            limit is not None for limit in (self.max_error_rate, self.max_violation_rate, self.max_latency_p95_s)
        )


@dataclass(frozen=True, kw_only=True)
class Route:
    """Who answers a policy's new episodes: revisions and their shares, which sum to 1; the first is the stable one."""

    shares: tuple[tuple[str, float], ...]
    # What served before the stable one: where a roll-back goes. Empty at first.
    previous: str = ""
    # The previous one stays loaded once it has drained.
    keep_previous: bool = False
    # Episodes in progress were told to go on with what serves now.
    move_episodes: bool = False
    shadow: Shadow | None = None
    guard: Guard = field(default_factory=Guard)
    # Whether the guard may roll this back: not what was rolled back already.
    watched: bool = True
    # Raised by every change of shares, so that watching starts again.
    changes: int = 0
    # Another route is about to take its place: a gateway that is cut off meanwhile begins no episode by this one.
    switching: bool = False

    def __post_init__(self) -> None:
        names = [revision for revision, _ in self.shares]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"shares name {names}, expected each revision once and at least one")
        if any(not 0.0 <= share <= 1.0 for _, share in self.shares) or abs(self.total - 1.0) > 1e-6:
            raise ValueError(f"shares are {dict(self.shares)}, expected 0 to 1 each and 1 in all")

    @property
    def total(self) -> float:
        return sum(share for _, share in self.shares)

    @property
    def stable(self) -> str:
        return self.shares[0][0]

    @property
    def revisions(self) -> tuple[str, ...]:
        """All that take new episodes."""
        return tuple(revision for revision, _ in self.shares)

    @property
    def suspects(self) -> tuple[str, ...]:
        """Whom the guard judges: those beside the stable one, or that one alone where it has taken another's place."""
        return self.revisions[1:] or ((self.stable,) if self.previous else ())


@dataclass(frozen=True, kw_only=True)
class RevisionRecord:
    policy: str
    # The first 12 hex digits of the manifest's sha256, and all of it.
    revision: str
    manifest_sha256: str
    # A directory as the store names it, or a URL.
    location: str
    variant: str
    schema_digest: str
    num_bytes: int
    state: RevisionState
    # Why it failed; empty otherwise.
    error: str
    # Rises whenever all gateways are to load it, or to probe it where they have it.
    attempt: int
    # It drains, and an operator wants it loaded once it has.
    kept: bool = False
    registered_at: datetime
    changed_at: datetime


@dataclass(frozen=True, kw_only=True)
class PolicyRecord:
    name: str
    # None until a revision was promoted, and once the policy is retired.
    route: Route | None
    # When its shares last changed, from which on a change is watched; None before the first time.
    route_changed_at: datetime | None
    # None until a revision was promoted; a retirement changes nothing about it.
    first_served_at: datetime | None = None
    # By revision, the newest registration last.
    revisions: Mapping[str, RevisionRecord]
    # How foreign wires map onto this policy; empty uses the defaults.
    observation_map: Mapping[str, Any]

    @property
    def shadow(self) -> Shadow | None:
        return self.route.shadow if self.route else None

    def is_watched(self, now: datetime) -> bool:
        """Whether its guard may still undo the last change."""
        route, since = self.route, self.route_changed_at
        if route is None or since is None or not (route.watched and route.guard.watches):
            return False
        return (now - since).total_seconds() <= route.guard.watch_s


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All that gateways must agree on. `generation` rises with every change of it."""

    generation: int
    policies: Mapping[str, PolicyRecord]

    @property
    def digests(self) -> frozenset[str]:
        """Of all revisions, whichever policies have them."""
        return frozenset(name for policy in self.policies.values() for name in policy.revisions)

    @property
    def first_served(self) -> str:
        """The policy that served before all others did, retired or not; empty while none has."""
        served = [(policy.first_served_at, name) for name, policy in self.policies.items() if policy.first_served_at]
        return min(served)[1] if served else ""

    @property
    def switching(self) -> bool:
        """Whether a route is about to change."""
        return any(policy.route is not None and policy.route.switching for policy in self.policies.values())


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """One serving process, by the last time it was heard of. `beats` rises with every heartbeat."""

    gateway_id: str
    address: str
    beats: int
    # The fleet's generation that it routes by.
    generation: int
    started_at: datetime


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a gateway that says that it lives is told."""

    # The fleet's.
    generation: int
    # Itself among them, and those that died without a word until another one has found that out.
    num_gateways: int


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How a revision that a guard judges did in one gateway: since the change, over the guard's window."""

    # What it was counted by: the change of the route (Route.changes), and the guard of then.
    change: int
    guard: Guard
    num_requests: int
    # Of them; the others were answered.
    num_errors: int
    num_violations: int
    # Of those that were answered: later than the guard's limit, if it has one.
    num_slow: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How far one gateway is with one revision; `num_in_progress` is 0 when it has nothing to answer there."""

    gateway_id: str
    policy: str
    revision: str
    state: RevisionState
    # Why it failed, or, of one that is ready, why it did not pass its probe when that was asked again.
    error: str
    # Which of the revision's attempts state and error are of.
    attempt: int
    num_in_progress: int
    # None of a revision that no guard judges.
    tally: Tally | None = None


class OperationState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Something that takes longer than a call: what has been done so far, and how it ended."""

    operation_id: str
    kind: str
    policy: str
    revision: str
    actor: str
    # Which gateway's process carries it out.
    gateway_id: str
    state: OperationState
    steps: tuple[str, ...]
    error: str
    created_at: datetime
    changed_at: datetime

    @property
    def done(self) -> bool:
        return self.state is not OperationState.RUNNING


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """Who did what, when, from which revision to which."""

    number: int
    at: datetime
    actor: str
    action: str
    policy: str
    from_revision: str
    to_revision: str
    # "succeeded", or why not.
    outcome: str
    detail: Mapping[str, Any]
