"""When robots ask: periods with jitter, a phase of its own for each.

Owns the arithmetic alone. Open loop: the times are drawn before the run and know nothing of answers.
"""

from __future__ import annotations

import numpy as np


def question_times_s(
    *, robot: int, num_robots: int, rate_hz: float, duration_s: float, jitter: float, seed: int
) -> np.ndarray:
    """Seconds after the start at which one robot means to ask, ascending, in [0, duration_s).

    Every period holds one question. Robots are spread over the first period, each at a random place of its own slice,
    so that no run has them all at once by chance; `jitter` moves each question by up to that share of the period.
    """
    rng = np.random.default_rng([seed, robot])
    period_s = 1.0 / rate_hz
    phase_s = (robot + rng.uniform(0.0, 1.0)) / num_robots * period_s
    regular_s = phase_s + period_s * np.arange(int(np.ceil(duration_s * rate_hz)) + 1)
    times_s = np.sort(regular_s + rng.uniform(-jitter, jitter, len(regular_s)) * period_s)
    return times_s[(times_s >= 0) & (times_s < duration_s)]
