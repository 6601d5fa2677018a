"""How much of a model's time each robot of a policy has had lately, what it may have, and when it will ask again.

Owns who counts as present, the fading memory of use, the share, and the expectation that a robot asks as long after its
last question as that came after the one before. What follows from it is the queue's.

A policy may have several models, one for each of its revisions: while one drains, or in a canary. A model's time is
worth as much of the policy's as it has of the policy's robots, else whoever is the first on a new revision, the last on
an old one, or alone on a canary would have all of a model, and be held back for it, in nobody's way.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

# Longer than any robot plays one chunk.
ALONE_AFTER_S = 10.0
# Use fades with this time constant: a robot that begins fast is noticed after about this share of it.
_MEMORY_S = 2.0
# Of equal shares. Robots that are alike and keep a model busy have one each and are never held back; of three robots
# one may have two thirds of the time. Who has had more is held to one: else it would go at any moment as soon as it has
# faded to this, and be in everybody's way again.
_MOST_SHARES = 2
# Of a period: who is later than that has stopped, or begun to wait for something else.
_STOPPED_AFTER = 0.5


class _Use:
    __slots__ = ("asked_s", "at_s", "had_too_much", "model", "period_s", "used_s")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.used_s = 0.0
        self.had_too_much = False
        # Which it asked last; empty before it asked any.
        self.model = ""
        self.asked_s: float | None = None
        # From the question before to the last one; 0 while there is only one.
        self.period_s = 0.0


class Present:
    """The robots of one policy that asked in the last `ALONE_AFTER_S`, with the model time of each."""

    def __init__(self) -> None:
        # Who was noted last stands last.
        self._robots: OrderedDict[str, _Use] = OrderedDict()
        # By model, how many of them asked it last.
        self._num_by_model: Counter[str] = Counter()

    def note(self, robot_id: str, now_s: float) -> None:
        """A robot is there."""
        self._noted(robot_id, now_s)

    def note_asking(self, robot_id: str, now_s: float, *, model: str) -> None:
        """A robot asks."""
        use = self._noted(robot_id, now_s)
        self._count_out(use)
        self._num_by_model[model] += 1
        use.model = model
        use.period_s = now_s - use.asked_s if use.asked_s is not None else 0.0
        use.asked_s = now_s

    def note_use(self, robot_id: str, now_s: float, used_s: float, *, model: str) -> None:
        """A robot has had its chunk, which took `used_s` of a model."""
        use = self._noted(robot_id, now_s)
        use.used_s += used_s * max(1, self._num_by_model[model]) / len(self._robots)

    def next_asking_s(self, now_s: float, *, model: str, but: str) -> float:
        """When the first of a model's robots within their shares, but for `but`, will ask by its period; inf if none.

        Judges them.
        """
        self._forget(now_s)
        first_s = math.inf
        for robot_id, use in self._robots.items():
            if robot_id == but or use.model != model or use.asked_s is None or not use.period_s:
                continue
            if self._judge(use, now_s):
                continue
            if now_s <= use.asked_s + (1.0 + _STOPPED_AFTER) * use.period_s:
                first_s = min(first_s, max(now_s, use.asked_s + use.period_s))
        return first_s

    def num_robots(self, now_s: float) -> int:
        self._forget(now_s)
        return len(self._robots)

    def is_alone(self, robot_id: str, now_s: float) -> bool:
        self._forget(now_s)
        return len(self._robots) == (robot_id in self._robots)

    def too_much_for_s(self, robot_id: str, now_s: float) -> float:
        """Seconds until a robot that has had too much has faded to an equal share; 0 for one that has not.

        Judges it.
        """
        self._forget(now_s)
        use = self._robots.get(robot_id)
        if use is None or not self._judge(use, now_s):
            return 0.0
        return _MEMORY_S * math.log(_faded(use, now_s) / self._equal_share_s())

    def _judge(self, use: _Use, now_s: float) -> bool:
        """Whether a robot has had too much. Remembered, for it says which bound the next judgement goes by.

        So whoever asks about a robot, also on behalf of another, takes part in when it is held back.
        """
        used_s, equal_s = _faded(use, now_s), self._equal_share_s()
        use.had_too_much = used_s > (equal_s if use.had_too_much else _MOST_SHARES * equal_s)
        return use.had_too_much

    def _equal_share_s(self) -> float:
        """Of the time that is remembered; of few robots each may have all of it."""
        return _MEMORY_S / len(self._robots) if len(self._robots) > _MOST_SHARES else math.inf

    def _noted(self, robot_id: str, now_s: float) -> _Use:
        use = self._robots.get(robot_id)
        if use is None:
            use = self._robots[robot_id] = _Use(now_s)
            self._num_by_model[use.model] += 1
        use.used_s = _faded(use, now_s)
        use.at_s = now_s
        self._robots.move_to_end(robot_id)
        self._forget(now_s)
        return use

    def _forget(self, now_s: float) -> None:
        while self._robots:
            robot_id, use = next(iter(self._robots.items()))
            if now_s - use.at_s < ALONE_AFTER_S:
                return
            del self._robots[robot_id]
            self._count_out(use)

    def _count_out(self, use: _Use) -> None:
        self._num_by_model[use.model] -= 1
        if not self._num_by_model[use.model]:
            del self._num_by_model[use.model]


def _faded(use: _Use, now_s: float) -> float:
    return use.used_s * math.exp((use.at_s - now_s) / _MEMORY_S)
