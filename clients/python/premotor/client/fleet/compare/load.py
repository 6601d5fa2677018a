"""How hard a fleet asks: a rate at which a server is full, so that what each way can do shows.

Owns the arithmetic. Below that rate all ways answer everything, and a comparison says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from premotor.client.fleet.compare.settings import CompareSettings
from premotor.client.fleet.settings import FleetSettings

# Of a block, uncounted: this long at least, and until every robot has asked, within its first period, and had as long
# again to be answered.
_SETTLE_S = 1.0
_SETTLE_PERIODS = 2.0
# A block counts this many periods at least: in fewer it is chance how many answers it has.
_FEWEST_PERIODS = 3.0


@dataclass(frozen=True, kw_only=True)
class FleetLoad:
    """`rate_hz` is each robot's; `bare_per_s` what the bare forward does in a second, one question after the other.

    `times_bare` is what all robots together ask for, over that.
    """

    rate_hz: float
    control_rate_hz: float
    bare_per_s: float
    times_bare: float

    def of(self, settings: FleetSettings, *, num_robots: int, block_s: float, seed: int) -> FleetSettings:
        """A block that counts for `block_s`, or longer where robots ask too seldom for that."""
        settle_s = max(_SETTLE_S, _SETTLE_PERIODS / self.rate_hz)
        return replace(
            settings,
            num_robots=num_robots,
            rate_hz=self.rate_hz,
            control_rate_hz=self.control_rate_hz,
            duration_s=settle_s + max(block_s, _FEWEST_PERIODS / self.rate_hz),
            settle_s=settle_s,
            seed=seed,
        )


def fleet_load(settings: CompareSettings, *, bare_p50_s: float, action_horizon: int) -> FleetLoad:
    bare_per_s = 1.0 / bare_p50_s
    rate_hz = settings.load * bare_per_s / settings.num_robots if settings.rate_hz is None else settings.rate_hz
    # Played in two periods: asked again half-way.
    halfway_hz = action_horizon * rate_hz / 2
    return FleetLoad(
        rate_hz=rate_hz,
        control_rate_hz=halfway_hz if settings.control_rate_hz is None else settings.control_rate_hz,
        bare_per_s=bare_per_s,
        times_bare=settings.num_robots * rate_hz / bare_per_s,
    )
