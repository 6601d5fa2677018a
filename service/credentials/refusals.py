"""Refused calls, counted and logged.

Owns the names of the reasons and of the surfaces, and one metric. No label and no log field is chosen by the caller:
what came as a credential appears nowhere, and a token's holder only once its secret has proved right.
"""

from __future__ import annotations

import logging
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter

from service.credentials.token import TokenRecord

_logger = logging.getLogger(__name__)


class Surface(StrEnum):
    """Where calls come in."""

    GRPC = "grpc"
    ADMIN = "admin"
    OPENPI = "openpi"


class RefusalReason(StrEnum):
    # None came.
    MISSING = "missing"
    # What came is no single token of the form that tokens have.
    MALFORMED = "malformed"
    # No token of that id, or not its secret.
    WRONG = "wrong"
    # The secret from before a rotation, and its grace is over.
    ROTATED = "rotated"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SCOPE = "scope"
    POLICY = "policy"
    # One of the token's caps.
    CAP = "cap"


class Refusals:
    """Registered once in `registry`. Every series is there from the start: a first refusal is then seen as a rise."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = Counter(
            "premotor_refused_calls",
            "Calls refused for what came as a credential, or for what it may do.",
            ("surface", "reason"),
            registry=registry,
        )
        self._counts = {
            (surface, reason): counter.labels(surface, reason) for surface in Surface for reason in RefusalReason
        }

    def note(self, surface: Surface, reason: RefusalReason, token: TokenRecord | None) -> None:
        """`token` is given once the caller has proved to hold it."""
        self._counts[surface, reason].inc()
        _logger.info(
            "call refused",
            extra={
                "fields": {
                    "surface": surface,
                    "reason": reason,
                    "token_id": token.token_id if token else "",
                    "holder": token.name if token else "",
                }
            },
        )
