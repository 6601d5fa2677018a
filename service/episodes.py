"""Which revision answers which episode: the memory that keeps an episode on one revision while routes change.

Owns the episodes in progress in this process and nothing else of them; an episode that was silent for long enough has
ended. What a robot pinned is in progress as well, and decides nothing but that. For one event loop.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    episode_id: str
    revision: str
    # When it last asked.
    seen_s: float


# Policy, robot, and the revision that it pinned; empty for what is routed.
_Key = tuple[str, str, str]


class EpisodeTable:
    """One episode in progress for each robot of a policy: a new one ends the one before it.

    Beside it one for each revision that the robot pins. Remembers at most `max_episodes`; the longest silent are
    forgotten first.
    """

    def __init__(
        self,
        *,
        idle_s: float = 60.0,
        max_episodes: int = 65_536,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        # Silent for so long, an episode has ended.
        self.idle_s = idle_s
        self._max_episodes, self._now_s = max_episodes, now_s
        # The longest silent first.
        self._held: OrderedDict[_Key, _Held] = OrderedDict()
        self._counts: Counter[tuple[str, str]] = Counter()

    def revision(self, episode: Episode) -> str | None:
        """What answers this episode, None when it has not begun, or has ended."""
        return self._revision((episode.policy, episode.robot_id, ""), episode)

    def is_pinned(self, episode: Episode, revision: str) -> bool:
        """Whether the episode pinned that revision before, and has not ended."""
        return self._revision((episode.policy, episode.robot_id, revision), episode) is not None

    def hold(self, episode: Episode, revision: str) -> None:
        """The episode asked just now and `revision` is to answer."""
        self._hold((episode.policy, episode.robot_id, ""), episode, revision)

    def hold_pinned(self, episode: Episode, revision: str) -> None:
        """The episode asked just now for `revision` and no other. What answers when it asks for none stays as it is."""
        self._hold((episode.policy, episode.robot_id, revision), episode, revision)

    def count(self, policy: str, revision: str) -> int:
        """Episodes in progress on a revision."""
        horizon_s = self._now_s() - self.idle_s
        while self._held:
            key, held = next(iter(self._held.items()))
            if held.seen_s >= horizon_s:
                break
            self._drop(key)
        return self._counts[policy, revision]

    def release(self, policy: str, revision: str) -> int:
        """Lets go of the episodes that were routed to a revision: their next request is routed anew.

        Returns how many there were. Those that pinned it go on.
        """
        moved = [
            (owner, robot_id, pinned)
            for (owner, robot_id, pinned), held in self._held.items()
            if owner == policy and not pinned and held.revision == revision
        ]
        for key in moved:
            self._drop(key)
        return len(moved)

    def _revision(self, key: _Key, episode: Episode) -> str | None:
        held = self._held.get(key)
        if held is None or held.episode_id != episode.episode_id or held.seen_s + self.idle_s < self._now_s():
            return None
        return held.revision

    def _hold(self, key: _Key, episode: Episode, revision: str) -> None:
        self._drop(key)
        self._held[key] = _Held(episode_id=episode.episode_id, revision=revision, seen_s=self._now_s())
        self._counts[episode.policy, revision] += 1
        if len(self._held) > self._max_episodes:
            self._drop(next(iter(self._held)))

    def _drop(self, key: _Key) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            count = key[0], held.revision
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
