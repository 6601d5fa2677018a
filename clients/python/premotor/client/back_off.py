"""How long to wait before trying again.

Owns the growth of the wait and its jitter. Does not own waiting, and draws from the generator that it is given.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BackOff:
    """Waits that double from `initial_s` to `max_s`, each drawn from its upper half.

    The jitter keeps a fleet that lost its gateway at one moment from coming back at one moment.
    """

    initial_s: float = 0.1
    max_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.initial_s <= self.max_s:
            raise ValueError(f"back-off is {self.initial_s} to {self.max_s} s, expected more than 0 and in order")

    def delay_s(self, num_failures: int, generator: random.Random) -> float:
        """Seconds to wait after so many failures in a row, at least 1."""
        longest_s = min(self.initial_s * 2.0 ** min(num_failures - 1, 30), self.max_s)
        return longest_s * (0.5 + 0.5 * generator.random())
