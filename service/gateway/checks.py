"""What goes into one revision and what comes out of it, held to its description.

Owns when the checks of a revision are made, and how many are kept. Does not own the rules (validation.py, outputs.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from service.gateway.limits import GatewayLimits
from service.gateway.outputs import OutputCheck
from service.gateway.validation import RequestValidator
from service.revision import Revision

# Far more than are served at a time.
_MAX_REVISIONS = 256


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Of one revision under one policy's name."""

    request: RequestValidator
    # In the order of the embodiments.
    outputs: tuple[OutputCheck, ...]


class ChecksByRevision:
    """Made when they are first needed: what is served changes."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._checks: dict[tuple[str, str], Checks] = {}

    def of(self, policy: str, revision: Revision) -> Checks:
        key = policy, revision.revision
        checks = self._checks.get(key)
        if checks is None:
            if len(self._checks) >= _MAX_REVISIONS:
                self._checks.clear()
            description = revision.description
            checks = self._checks[key] = Checks(
                request=RequestValidator(description, self._limits),
                outputs=tuple(
                    OutputCheck(embodiment, action_horizon=description.action_horizon)
                    for embodiment in description.embodiments
                ),
            )
        return checks
