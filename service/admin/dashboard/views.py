"""What pages say of policies, revisions and traffic, worked out before a template prints it.

Owns which change fits which state, and the words for roles and reasons. Reads what the registry, the served policies
and the recent traffic say; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.admin.dashboard.changes import VERBS
from service.admin.dashboard.rendering import milliseconds, percent
from service.admin.dashboard.shadow_readings import ShadowReading, read_shadow
from service.admin.dashboard.timeline import STEP_S, Timeline, timeline
from service.admin.dependencies import AdminParts
from service.gateway.outcomes import Record
from service.observability.recent import Window
from service.registry import AuditEntry, Guard, Operation, PolicyRecord, Registry, RevisionRecord, RevisionState

WINDOW_S = 300
NOW_S = 10
_S = RevisionState
# What an operator did to a route: what may show in the latency.
_EVENTS = frozenset({"promote", "roll back", "split", "drain", "shadow", "retire"})
_MANY_ENTRIES = 500
# Of RequestError.Reason, for a person.
REASONS: Mapping[str, str] = {
    "": "the caller left before its answer",
    "INVALID": "a field did not fit the policy",
    "UNKNOWN_POLICY": "no such policy",
    "UNKNOWN_REVISION": "the pinned revision is not loaded",
    "EXPIRED": "the deadline passed first",
    "SUPERSEDED": "a newer request of the same robot took its turn",
    "OVERLOADED": "too many waited",
    "DRAINING": "the gateway was stopping",
    "NOT_READY": "no revision was ready",
    "UNAVAILABLE": "the backend was starting, restarting or gone",
    "OUTPUT_VIOLATION": "the chunk broke a limit and was not sent",
    "UNAUTHENTICATED": "no credential that counts",
    "PERMISSION_DENIED": "a credential for other things",
    "FAILED": "the service failed",
}


@dataclass(frozen=True, kw_only=True)
class RevisionView:
    record: RevisionRecord
    # Of new episodes.
    share: float
    # "stable", "canary", "shadow" or "previous"; empty for the others.
    role: str
    # Over all gateways.
    num_in_progress: int
    # How it did in the window, by what a guard judges by.
    outcomes: Record
    # The changes that its state allows, by slug; their verbs.
    changes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A revision's part of the bar of shares."""

    revision: RevisionView
    start_percent: float
    width_percent: float


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one policy, as this gateway sees it."""

    window: Window
    chunks_per_s: float
    num_queued: int
    num_robots: int
    # Of requests in the window that got no chunk.
    error_share: float
    # Batch size, requests in such batches, their share.
    batches: tuple[tuple[int, int, float], ...]
    # Reason, what it means, how many.
    errors: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, kw_only=True)
class PolicyView:
    record: PolicyRecord
    # The newest registration first.
    revisions: tuple[RevisionView, ...]
    # The stable one first.
    segments: tuple[Segment, ...]
    shadow: RevisionView | None
    guard: str
    traffic: Traffic
    changes: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def answering(self) -> tuple[RevisionView, ...]:
        """Those to be compared: that take new episodes, the stable one first, or answered in the window."""
        routed = [segment.revision for segment in self.segments]
        others = [each for each in self.revisions if each.outcomes.num_requests and each not in routed]
        return (*routed, *others)


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """What the registry says of one policy at one moment."""

    record: PolicyRecord
    # By revision, over all gateways.
    num_in_progress: Mapping[str, int]
    events: Sequence[AuditEntry]
    operations: Sequence[Operation]


def policy_facts(registry: Registry, record: PolicyRecord) -> PolicyFacts:
    """Blocking."""
    since = datetime.now(UTC) - timedelta(hours=1)
    return PolicyFacts(
        record=record,
        num_in_progress={
            name: sum(placement.num_in_progress for placement in registry.placements(record.name, name))
            for name, revision in record.revisions.items()
            if revision.state.wanted
        },
        events=[
            entry
            for entry in registry.audit(record.name, most=_MANY_ENTRIES)
            if entry.action in _EVENTS and entry.at >= since
        ],
        operations=registry.operations(record.name, most=5),
    )


def num_robots(parts: AdminParts) -> dict[str, int]:
    """Episodes in progress here, by policy. For the event loop that answers robots, which writes them."""
    return {
        policy: sum(
            parts.policies.episodes.count(policy, revision.revision) for revision in parts.policies.revisions(policy)
        )
        for policy in parts.policies
    }


def policy_view(parts: AdminParts, facts: PolicyFacts, robots: Mapping[str, int]) -> PolicyView:
    """`robots` is what num_robots found."""
    record = facts.record
    revisions = {
        name: _revision_view(parts, record, revision, facts.num_in_progress.get(name, 0))
        for name, revision in record.revisions.items()
    }
    segments, start = [], 0.0
    for name, share in record.route.shares if record.route else ():
        segments.append(Segment(revision=revisions[name], start_percent=100 * start, width_percent=100 * share))
        start += share
    return PolicyView(
        record=record,
        revisions=tuple(reversed(revisions.values())),
        segments=tuple(segments),
        shadow=revisions.get(record.shadow.revision) if record.shadow else None,
        guard=guard_in_words(record.route.guard) if record.route else "",
        traffic=traffic(parts, record.name, robots.get(record.name, 0)),
        changes=_with_verbs(fitting_changes(record, None)),
    )


def traffic(parts: AdminParts, policy: str, num_robots: int = 0) -> Traffic:
    recent = parts.recent.of(policy)
    window = recent.window(WINDOW_S)
    num_ended = window.num_chunks + window.num_errors
    return Traffic(
        window=window,
        chunks_per_s=recent.window(NOW_S).chunks_per_s,
        num_queued=int(recent.num_queued()),
        num_robots=num_robots,
        error_share=window.num_errors / num_ended if num_ended else 0.0,
        batches=tuple((batch, count, count / window.num_chunks) for batch, count in window.batches.items()),
        errors=tuple((reason, REASONS[reason], count) for reason, count in window.errors.items()),
    )


def policy_timeline(parts: AdminParts, facts: PolicyFacts, *, window_s: int) -> Timeline:
    now = datetime.now(UTC)
    points = parts.recent.of(facts.record.name).curve(window_s=window_s, step_s=STEP_S[window_s])
    events = [event for event in facts.events if (now - event.at).total_seconds() < window_s]
    return timeline(points, events, window_s=window_s, now=now)


def shadow_view(parts: AdminParts, policy: PolicyView) -> ShadowReading | None:
    if policy.shadow is None:
        return None
    return read_shadow(parts.metrics_registry, policy.name, policy.shadow.record.revision)


def guard_in_words(guard: Guard) -> str:
    """Empty for a guard that watches nothing."""
    limits = [
        text
        for value, text in (
            (guard.max_error_rate, f"over {percent(guard.max_error_rate or 0)} errors"),
            (guard.max_violation_rate, f"over {percent(guard.max_violation_rate or 0)} output violations"),
            (guard.max_latency_p95_s, f"a p95 above {milliseconds(guard.max_latency_p95_s or 0)}"),
        )
        if value is not None
    ]
    if not limits:
        return ""
    return (
        f"rolls back on {' or '.join(limits)}, judged over {guard.window_s:g} s and at least {guard.min_requests} "
        f"requests, for {guard.watch_s / 60:g} min after a change"
    )


def _revision_view(
    parts: AdminParts, policy: PolicyRecord, record: RevisionRecord, num_in_progress: int
) -> RevisionView:
    return RevisionView(
        record=record,
        share=_share(policy, record),
        role=_role(policy, record),
        num_in_progress=num_in_progress,
        outcomes=parts.outcomes.record(policy.name, record.revision, since_s=-math.inf, window_s=WINDOW_S),
        changes=_with_verbs(fitting_changes(policy, record)),
    )


def fitting_changes(policy: PolicyRecord, record: RevisionRecord | None) -> tuple[str, ...]:
    """Slugs of the changes that the state allows: of a revision, or of the policy as a whole."""
    route = policy.route
    if record is None:
        fitting = {
            "split": route is not None and len(policy.revisions) > 1,
            "roll-back": route is not None and (len(route.shares) > 1 or bool(route.previous)),
            "guard": route is not None,
            "register": True,
            "retire": route is not None,
            "delete-policy": route is None and not any(each.state.wanted for each in policy.revisions.values()),
        }
    else:
        role, state = _role(policy, record), record.state
        settled = state not in (_S.LOADING, _S.WARMING)
        fitting = {
            "promote": settled and not (role == "stable" and _share(policy, record) == 1.0),
            "load": not state.wanted,
            "probe": state in (_S.READY, _S.SERVING),
            "shadow": settled and route is not None and role not in ("stable", "canary"),
            "drain": role == "canary",
            "unload": state in (_S.READY, _S.DRAINING),
            "delete": not state.wanted,
        }
    return tuple(change for change, fits in fitting.items() if fits)


def _with_verbs(slugs: Sequence[str]) -> dict[str, str]:
    return {slug: VERBS[slug] for slug in slugs}


def _share(policy: PolicyRecord, record: RevisionRecord) -> float:
    return dict(policy.route.shares).get(record.revision, 0.0) if policy.route else 0.0


def _role(policy: PolicyRecord, record: RevisionRecord) -> str:
    route = policy.route
    if route is None:
        return ""
    if record.revision in route.revisions:
        return "stable" if record.revision == route.stable else "canary"
    if route.shadow is not None and route.shadow.revision == record.revision:
        return "shadow"
    return "previous" if record.revision == route.previous else ""
