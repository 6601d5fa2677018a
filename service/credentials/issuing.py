"""Making tokens and new secrets for them, for the command line and the admin plane alike.

Owns that a secret is shown once and only its digest is kept. Blocking: callers on an event loop use a thread.
"""

from __future__ import annotations

from typing import Protocol

from service.credentials.secret import Issued, issue, new_token_id
from service.credentials.token import TokenRecord, TokenSpec

# A secret that leaked is rotated to be rid of it; longer than a month is no grace.
MAX_GRACE_S = 31 * 24 * 3600.0


class TokenStore(Protocol):
    """Where tokens are kept: the registry."""

    def create_token(self, spec: TokenSpec, *, token_id: str, secret_sha256: str, actor: str) -> TokenRecord: ...

    def rotate_token(self, token_id: str, *, secret_sha256: str, grace_s: float, actor: str) -> TokenRecord: ...


def create_token(store: TokenStore, spec: TokenSpec, *, actor: str) -> tuple[TokenRecord, Issued]:
    """Raises ConflictError, RegistryUnavailableError."""
    issued = issue(new_token_id())
    return store.create_token(spec, token_id=issued.token_id, secret_sha256=issued.sha256, actor=actor), issued


def rotate_token(store: TokenStore, token_id: str, *, grace_s: float, actor: str) -> tuple[TokenRecord, Issued]:
    """Raises ValueError for a grace that is none, UnknownTokenError, ConflictError, RegistryUnavailableError."""
    check_grace(grace_s)
    issued = issue(token_id)
    return store.rotate_token(token_id, secret_sha256=issued.sha256, grace_s=grace_s, actor=actor), issued


def check_grace(grace_s: float) -> None:
    if not 0 <= grace_s <= MAX_GRACE_S:
        raise ValueError(f"grace_s is {grace_s}, expected 0 to {MAX_GRACE_S:g}")
