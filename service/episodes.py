"""Which revision answers which episode: the memory that keeps an episode on one revision while routes change.

Owns the episodes in progress in this process and nothing else of them; an episode that was silent for long enough has
ended. For one event loop.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One attempt of one robot, as a policy's callers name it."""

    policy: str
    robot_id: str
    episode_id: str


class EpisodeTable:
    """One episode in progress for each robot of a policy: a new one ends the one before it.

    Remembers at most `max_robots`; the longest silent are forgotten first.
    """

    def __init__(
        self, *, idle_s: float = 60.0, max_robots: int = 65_536, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_s, self._max_robots, self._now_s = idle_s, max_robots, now_s
        # Policy and robot to episode, revision and when it last asked; the longest silent first.
        self._held: OrderedDict[tuple[str, str], tuple[str, str, float]] = OrderedDict()
        self._counts: Counter[tuple[str, str]] = Counter()

    def revision(self, episode: Episode) -> str | None:
        """What answers this episode, None when it has not begun, or has ended."""
        held = self._held.get((episode.policy, episode.robot_id))
        if held is None:
            return None
        episode_id, revision, seen_s = held
        return revision if episode_id == episode.episode_id and seen_s + self._idle_s >= self._now_s() else None

    def hold(self, episode: Episode, revision: str) -> None:
        """The episode asked just now and `revision` is to answer."""
        key = episode.policy, episode.robot_id
        self._drop(key)
        self._held[key] = episode.episode_id, revision, self._now_s()
        self._counts[episode.policy, revision] += 1
        if len(self._held) > self._max_robots:
            self._drop(next(iter(self._held)))

    def count(self, policy: str, revision: str) -> int:
        """Episodes in progress on a revision."""
        horizon_s = self._now_s() - self._idle_s
        while self._held:
            key, (_, _, seen_s) = next(iter(self._held.items()))
            if seen_s >= horizon_s:
                break
            self._drop(key)
        return self._counts[policy, revision]

    def release(self, policy: str, revision: str) -> int:
        """Lets go of a revision's episodes: their next request is routed anew. Returns how many there were."""
        moved = [key for key, (_, name, _) in self._held.items() if key[0] == policy and name == revision]
        for key in moved:
            self._drop(key)
        return len(moved)

    def _drop(self, key: tuple[str, str]) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            count = key[0], held[1]
            self._counts[count] -= 1
            if not self._counts[count]:
                del self._counts[count]


def draw(episode: Episode, shares: Sequence[tuple[str, float]]) -> str:
    """The revision that a new episode falls to: the same in every gateway, and for a share that grows, still the same.

    The first revision takes what the others leave, so that an episode only ever changes sides between it and the one
    whose share was changed.
    """
    stable, *others = shares
    text = "\0".join((episode.policy, episode.robot_id, episode.episode_id))
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    for revision, share in others:
        if place < share:
            return revision
        place -= share
    return stable[0]
