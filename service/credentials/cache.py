"""The tokens that this process goes by, in memory.

Owns the snapshot and its replacement, whole, by a newer one. No request waits for it: the registry is read when the
fleet has changed, in a thread, and what was known stays known while the registry does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from service.credentials.token import TokenRecord


class TokenSource(Protocol):
    """Where tokens are kept. Blocking."""

    def tokens(self) -> Iterable[TokenRecord]: ...


@dataclass(frozen=True, kw_only=True)
class TokenSnapshot:
    """All tokens at one moment, by id. Never changed: a request that holds one sees one state of the world."""

    tokens: Mapping[str, TokenRecord] = field(default_factory=lambda: MappingProxyType({}))
    # Whether a caller has to show a token at all.
    required: bool = False


class TokenCache:
    """One per process. Reading never waits; `refresh` is for a thread."""

    def __init__(self) -> None:
        self._snapshot = TokenSnapshot()
        self._refreshing = threading.Lock()

    @property
    def snapshot(self) -> TokenSnapshot:
        return self._snapshot

    def refresh(self, source: TokenSource) -> None:
        """Raises what the source raises, and then goes by what it had."""
        # One at a time: what was read earlier must not replace what was read later, or a revoked token comes back.
        with self._refreshing:
            tokens = {token.token_id: token for token in source.tokens()}
            # Tokens are never deleted. A registry that has lost all of them opens nothing.
            required = self._snapshot.required or bool(tokens)
            self._snapshot = TokenSnapshot(tokens=MappingProxyType(tokens), required=required)
