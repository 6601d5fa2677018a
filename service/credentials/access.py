"""May this caller do this, now?

Owns the reading of a credential, the checks of scope, policy and caps, and who the caller is then said to be. Each
question is answered from the snapshot of that moment by one look-up, one sha256 and one comparison: nothing is kept
of an earlier answer, so that a revocation ends a stream's next request as well. Does not own transport.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from prometheus_client import CollectorRegistry

from service.credentials.cache import TokenCache
from service.credentials.caps import UsageByToken
from service.credentials.refusals import RefusalReason, Refusals, Surface
from service.credentials.secret import digest, token_id_of
from service.credentials.token import Scope, TokenRecord
from service.errors import AuthenticationError, NotAllowedError, OverloadedError, quoted

# openpi's client sends its key with a scheme of its own.
_SCHEMES = {
    Surface.GRPC: ("bearer",),
    Surface.ADMIN: ("bearer",),
    Surface.OPENPI: ("api-key", "bearer"),
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, as far as this process knows; no token where none is required."""

    token: TokenRecord | None

    @property
    def actor(self) -> str:
        """For the audit log. Where no token is required, whoever reaches loopback is the operator."""
        return self.token.holder if self.token is not None else "operator"

    def may(self, scopes: Collection[Scope]) -> bool:
        """Whether one of the scopes is the caller's."""
        return self.token is None or any(self.token.may(scope) for scope in scopes)

    def for_policy(self, policy: str) -> bool:
        return self.token is None or self.token.for_policy(policy)


class Credentials:
    """What every surface of one process shares: tokens, what they use, what was refused."""

    def __init__(
        self,
        *,
        metrics_registry: CollectorRegistry,
        tokens: TokenCache | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `tokens` nobody needs one. `clock_s` is monotonic."""
        self.tokens = tokens or TokenCache()
        self._now = now
        self._usage = UsageByToken(clock_s=clock_s)
        self._refusals = Refusals(metrics_registry)

    def on(self, surface: Surface) -> Access:
        return Access(surface=surface, tokens=self.tokens, usage=self._usage, refusals=self._refusals, now=self._now)


class Access:
    """The same questions on one surface. Every refusal is counted and logged here, then raised."""

    def __init__(
        self,
        *,
        surface: Surface,
        tokens: TokenCache,
        usage: UsageByToken,
        refusals: Refusals,
        now: Callable[[], datetime],
    ) -> None:
        self._surface = surface
        self._schemes = _SCHEMES[surface]
        self._tokens = tokens
        self._usage = usage
        self._refusals = refusals
        self._now = now

    def caller(self, authorization: Sequence[str]) -> Caller:
        """Who holds the credential. `authorization` has all values of that header. Raises AuthenticationError."""
        if not self._tokens.snapshot.required:
            return Caller(token=None)
        if not authorization:
            self._deny(RefusalReason.MISSING, f"no credential came, expected `authorization: {self._expected}`")
        presented = self._presented(authorization)
        token_id = token_id_of(presented)
        if token_id is None:
            self._deny(
                RefusalReason.MALFORMED, f"the credential is not one, expected `authorization: {self._expected}`"
            )
        return self.holder(token_id, digest(presented))

    def holder(self, token_id: str, sha256: str) -> Caller:
        """Who showed a token of that digest, now or when their session began. Raises AuthenticationError."""
        token, now = self._tokens.snapshot.tokens.get(token_id), self._now()
        if token is None:
            self._deny(RefusalReason.WRONG, "the credential is not a valid one")
        if not hmac.compare_digest(sha256, token.secret_sha256):
            if not hmac.compare_digest(sha256, token.previous_sha256):
                self._deny(RefusalReason.WRONG, "the credential is not a valid one")
            if token.previous_until is None or now >= token.previous_until:
                self._deny(RefusalReason.ROTATED, "the token has a new secret by now", token)
        if token.revoked_at is not None:
            self._deny(RefusalReason.REVOKED, "the token has been revoked", token)
        if token.expired(now):
            self._deny(RefusalReason.EXPIRED, "the token has expired", token)
        return Caller(token=token)

    def require(self, caller: Caller, scopes: Collection[Scope], *, policy: str = "") -> None:
        """One of the scopes, and for a policy that is named that one too. Raises NotAllowedError."""
        if not caller.may(scopes):
            needed = " or ".join(scopes)
            self._refuse(RefusalReason.SCOPE, NotAllowedError(f"this needs a token with scope {needed}"), caller.token)
        if policy and not caller.for_policy(policy):
            error = NotAllowedError(f"the token is not for policy {quoted(policy)}")
            self._refuse(RefusalReason.POLICY, error, caller.token)

    @contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """One request, counted against the caller's caps while it is in flight. Raises OverloadedError."""
        with self._capped(caller, self._usage.begin_request, self._usage.end_request):
            yield

    @contextmanager
    def stream(self, caller: Caller) -> Iterator[None]:
        """One stream, counted against the caller's caps while it is open. Raises OverloadedError."""
        with self._capped(caller, self._usage.begin_stream, self._usage.end_stream):
            yield

    @contextmanager
    def _capped(
        self, caller: Caller, begin: Callable[[TokenRecord], None], end: Callable[[TokenRecord], None]
    ) -> Iterator[None]:
        if caller.token is None:
            yield
            return
        try:
            begin(caller.token)
        except OverloadedError:
            self._refusals.note(self._surface, RefusalReason.CAP, caller.token)
            raise
        try:
            yield
        finally:
            end(caller.token)

    @property
    def _expected(self) -> str:
        return f"{'Api-Key' if self._schemes[0] == 'api-key' else 'Bearer'} TOKEN"

    def _presented(self, authorization: Sequence[str]) -> str:
        """The token that came; something that is none when it is not one of the surface's schemes, or several came."""
        scheme, _, token = authorization[0].partition(" ")
        return token.strip() if len(authorization) == 1 and scheme.lower() in self._schemes else ""

    def _deny(self, reason: RefusalReason, message: str, token: TokenRecord | None = None) -> NoReturn:
        self._refuse(reason, AuthenticationError(message), token)

    def _refuse(
        self, reason: RefusalReason, error: AuthenticationError | NotAllowedError, token: TokenRecord | None
    ) -> NoReturn:
        self._refusals.note(self._surface, reason, token)
        raise error
