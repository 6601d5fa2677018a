"""What a token is: who holds it, what it is for, until when, and how much of the service it may use.

Owns these values and their sanity. Holds no secret, only what a secret hashes to. Does not own where they are kept
(registry/tokens.py) nor what they decide (access.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

MAX_NAME_CHARS = 96
# As long as the registry keeps.
MAX_POLICY_CHARS = 128
# More than any gateway does; a cap beyond it is a slip of the pen.
MAX_CAP = 1_000_000
# Half of the requests that may wait for a policy, and of the robots that openpi's wire takes (gateway/limits.py,
# openpi/limits.py): one credential, lost or looping, leaves room for the others. A fleet that shares one is given more.
DEFAULT_MAX_IN_FLIGHT = 128
DEFAULT_MAX_STREAMS = 128


class Scope(StrEnum):
    """What a token is for. Robots and operators hold different ones: no scope but `infer` asks for chunks."""

    INFER = "infer"
    OBSERVE = "observe"
    ADMIN = "admin"

    @property
    def covers(self) -> frozenset[Scope]:
        """The scopes that this one includes."""
        return frozenset({Scope.ADMIN, Scope.OBSERVE}) if self is Scope.ADMIN else frozenset({self})


@dataclass(frozen=True, kw_only=True)
class Caps:
    """How much of one gateway a token may use at a time. Each has a value but the rate, where None leaves it out."""

    max_requests_per_s: float | None = None
    # None becomes the default, also of tokens that were made when there was none.
    max_in_flight: int | None = None
    max_streams: int | None = None

    def __post_init__(self) -> None:
        for name, default in (("max_in_flight", DEFAULT_MAX_IN_FLIGHT), ("max_streams", DEFAULT_MAX_STREAMS)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("max_requests_per_s", "max_in_flight", "max_streams"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_CAP:
                raise ValueError(f"{name} is {value}, expected more than 0 and at most {MAX_CAP}")


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """What an operator says of a token that is to be created."""

    name: str
    scopes: frozenset[Scope]
    # Empty means all policies.
    policies: tuple[str, ...] = ()
    expires_at: datetime | None = None
    caps: Caps = Caps()

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable() or len(self.name) > MAX_NAME_CHARS:
            raise ValueError(f"name is {self.name!r}, expected 1 to {MAX_NAME_CHARS} printable characters")
        if not self.scopes:
            raise ValueError(f"no scope came, expected some of {', '.join(Scope)}")
        if any(not (policy.isprintable() and 0 < len(policy) <= MAX_POLICY_CHARS) for policy in self.policies):
            raise ValueError(
                f"policies are {list(self.policies)}, expected names of 1 to {MAX_POLICY_CHARS} printable characters"
            )
        # Whoever may administer or watch the service sees all of it; a list would promise what it does not keep.
        if self.policies and self.scopes != {Scope.INFER}:
            raise ValueError(f"policies came with scopes {', '.join(sorted(self.scopes))}, expected infer alone")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ValueError(f"expires_at is {self.expires_at.isoformat()}, expected a time with its zone")


@dataclass(frozen=True, kw_only=True)
class TokenRecord(TokenSpec):
    """A token as the registry keeps it. Never deleted: an id in a log or in the audit says whose it was."""

    token_id: str
    secret_sha256: str
    # The secret before the last rotation, empty when there is none, and until when it is good.
    previous_sha256: str
    previous_until: datetime | None
    created_at: datetime
    revoked_at: datetime | None

    @property
    def holder(self) -> str:
        """For logs and the audit."""
        return f"{self.name} ({self.token_id})"

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    def may(self, scope: Scope) -> bool:
        return any(scope in each.covers for each in self.scopes)

    def for_policy(self, policy: str) -> bool:
        return not self.policies or policy in self.policies
