"""A token as its holder carries it: `pm_<token id>_<secret>`.

Owns its form, its making and its digest. Whoever makes one shows it once; nothing here or elsewhere keeps it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

_TOKEN = re.compile(r"pm_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A token at the one moment at which its secret is known."""

    token_id: str
    token: str = field(repr=False)

    @property
    def sha256(self) -> str:
        return digest(self.token)


def new_token_id() -> str:
    return secrets.token_hex(6)


def issue(token_id: str) -> Issued:
    """A new secret for that id."""
    return Issued(token_id=token_id, token=f"pm_{token_id}_{secrets.token_urlsafe(32)}")


def token_id_of(token: str) -> str | None:
    """Whose token this claims to be; None for what no token looks like. Proves nothing."""
    match = _TOKEN.fullmatch(token)
    return match.group(1) if match else None


def digest(token: str) -> str:
    """sha256 in hex. A slow, salted hash protects what people choose; 256 random bits are beyond guessing as they are,
    and this runs for every request."""
    return hashlib.sha256(token.encode()).hexdigest()
