"""How much of a model's time each robot of a policy has had lately, and what it may have beside the others.

Owns who counts as present, the fading memory of use, and the share. What follows from it is the queue's.
"""

from __future__ import annotations

import math
from collections import OrderedDict

# Longer than any robot plays one chunk.
ALONE_AFTER_S = 10.0
# Use fades with this time constant: a robot that begins fast is noticed after about this share of it.
_MEMORY_S = 2.0
# Of equal shares. Robots that are alike and keep a model busy have one each and are never held back; of three robots
# one may have two thirds of the time.
_MOST_SHARES = 2


class _Use:
    __slots__ = ("at_s", "used_s")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.used_s = 0.0


class Present:
    """The robots of one policy that asked in the last `ALONE_AFTER_S`, with the model time of each."""

    def __init__(self) -> None:
        # Who was noted last stands last.
        self._robots: OrderedDict[str, _Use] = OrderedDict()

    def note(self, robot_id: str, now_s: float, used_s: float = 0.0) -> None:
        """A robot asks, or has had its chunk, which took `used_s` of a model."""
        use = self._robots.get(robot_id)
        if use is None:
            use = self._robots[robot_id] = _Use(now_s)
        use.used_s = _faded(use, now_s) + used_s
        use.at_s = now_s
        self._robots.move_to_end(robot_id)
        self._forget(now_s)

    def is_alone(self, robot_id: str, now_s: float) -> bool:
        self._forget(now_s)
        return len(self._robots) == (robot_id in self._robots)

    def too_much_for_s(self, robot_id: str, now_s: float) -> float:
        """Seconds until a robot's use has faded to what it may have; 0 when it is within that now."""
        use = self._robots.get(robot_id)
        self._forget(now_s)
        if len(self._robots) <= _MOST_SHARES:
            return 0.0
        most_s = _MEMORY_S * _MOST_SHARES / len(self._robots)
        used_s = _faded(use, now_s) if use is not None else 0.0
        return _MEMORY_S * math.log(used_s / most_s) if used_s > most_s else 0.0

    def _forget(self, now_s: float) -> None:
        while self._robots:
            robot_id, use = next(iter(self._robots.items()))
            if now_s - use.at_s < ALONE_AFTER_S:
                return
            del self._robots[robot_id]


def _faded(use: _Use, now_s: float) -> float:
    return use.used_s * math.exp((use.at_s - now_s) / _MEMORY_S)
