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
    """Remembers at most `max_episodes`; the longest silent are forgotten first."""

    def __init__(
        self, *, idle_s: float = 60.0, max_episodes: int = 65_536, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_s, self._max_episodes, self._now_s = idle_s, max_episodes, now_s
        self._held: OrderedDict[Episode, tuple[str, float]] = OrderedDict()
        self._counts: Counter[tuple[str, str]] = Counter()

    def revision(self, episode: Episode) -> str | None:
        """What answers this episode, None when it has not begun, or has ended."""
        held = self._held.get(episode)
        if held is None or held[1] + self._idle_s < self._now_s():
            return None
        return held[0]

    def hold(self, episode: Episode, revision: str) -> None:
        """The episode asked just now and `revision` is to answer."""
        self._drop(episode)
        self._held[episode] = revision, self._now_s()
        self._counts[episode.policy, revision] += 1
        if len(self._held) > self._max_episodes:
            self._drop(next(iter(self._held)))

    def count(self, policy: str, revision: str) -> int:
        """Episodes in progress on a revision."""
        horizon_s = self._now_s() - self._idle_s
        while self._held:
            episode, (_, seen_s) = next(iter(self._held.items()))
            if seen_s >= horizon_s:
                break
            self._drop(episode)
        return self._counts[policy, revision]

    def release(self, policy: str, revision: str) -> int:
        """Lets go of a revision's episodes: their next request is routed anew. Returns how many there were."""
        moved = [episode for episode, (name, _) in self._held.items() if episode.policy == policy and name == revision]
        for episode in moved:
            self._drop(episode)
        return len(moved)

    def _drop(self, episode: Episode) -> None:
        held = self._held.pop(episode, None)
        if held is not None:
            key = episode.policy, held[0]
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


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
