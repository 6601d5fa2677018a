"""How long an answer takes, in control steps, from the answers there were.

Owns the estimate and the rule that turns it into "ask now". Does not own clocks: it is told what took how long.
"""

from __future__ import annotations

import math
from collections import deque

# A latency of whole steps must not become one more by a rounding error of subtracted times.
_ROUNDING = 1e-6


class LatencyEstimate:
    """A high quantile of the last waits, from capturing an observation to having its chunk.

    Of questions that were answered, no others: one that timed out says nothing of how long answers take, and two of
    them would be the quantile of all questions of a minute. Nor need the next be asked sooner for it: what had to be
    asked for then has to be asked for until a chunk comes.

    A chunk that was asked for d steps after its observation can be played from the d-th row on, so the buffer must hold
    d actions when the observation is captured: ask once no more than `threshold_steps` remain. A quantile and not the
    mean, because half of the chunks come later than the mean and each of those is an underrun; a window, because
    networks change; one step of margin, because a chunk that comes just after a step began waits for the next one. With
    one question in flight, chunks of fewer than 2 d actions run out whatever the threshold.
    """

    def __init__(
        self, control_rate_hz: float, *, quantile: float = 0.95, window: int = 32, margin_steps: int = 1
    ) -> None:
        if not 0 < control_rate_hz < math.inf:
            raise ValueError(f"control_rate_hz is {control_rate_hz}, expected more than 0")
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile is {quantile}, expected more than 0, at most 1")
        if window < 1 or margin_steps < 0:
            raise ValueError(f"window is {window} and margin_steps {margin_steps}, expected at least 1 and 0")
        self._rate_hz, self._quantile, self._margin_steps = control_rate_hz, quantile, margin_steps
        self._waits_s: deque[float] = deque(maxlen=window)

    def add(self, waited_s: float) -> None:
        """Notes what one chunk was waited for."""
        self._waits_s.append(waited_s)

    @property
    def latency_s(self) -> float | None:
        """None before anything was measured."""
        if not self._waits_s:
            return None
        rank = math.ceil(self._quantile * len(self._waits_s)) - 1
        return sorted(self._waits_s)[rank]

    @property
    def delay_steps(self) -> int:
        """Control steps that pass until a chunk is there, at least 1; 1 before anything was measured."""
        latency_s = self.latency_s
        return 1 if latency_s is None else max(math.ceil(latency_s * self._rate_hz - _ROUNDING), 1)

    @property
    def threshold_steps(self) -> int:
        """Ask when no more actions than this remain."""
        return self.delay_steps + self._margin_steps
