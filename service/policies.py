"""Which policies are served, and which of their revisions answers a request.

Owns the lookup from a policy's name, an episode and what its robot asks for to a revision. Does not own loading
(rollout/ and the backends do), readiness (the backend knows it), or why a route changed (the registry does): what it is
given replaces what it had, whole.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from service.episodes import Episode, EpisodeTable, draw
from service.errors import NotReadyError, UnknownPolicyError, UnknownRevisionError
from service.registry import Shadow
from service.revision import Revision

# What a policy may be called: its name is a part of the admin plane's paths, in which a colon begins a verb. No control
# characters, some of which no database keeps.
POLICY_NAME = r"[^/:\x00-\x1f\x7f-\x9f]{1,128}"


def check_policy_name(name: str) -> None:
    """Raises ValueError for what no policy may be called."""
    if re.fullmatch(POLICY_NAME, name) is None:
        raise ValueError(
            f"{name!r} came, expected a name of 1 to 128 characters, none of them /, : or a control character"
        )


@dataclass(frozen=True, kw_only=True)
class ServedPolicy:
    """One policy's revisions that can answer, and the shares of its new episodes, the stable one's first."""

    revisions: Mapping[str, Revision]
    shares: tuple[tuple[str, float], ...]
    shadow: Shadow | None = None

    def __post_init__(self) -> None:
        if missing := [revision for revision, _ in self.shares if revision not in self.revisions]:
            raise ValueError(f"shares name {missing}, expected some of {list(self.revisions)}")
        if not self.shares:
            raise ValueError("shares are empty, expected at least one")

    @property
    def stable(self) -> Revision:
        return self.revisions[self.shares[0][0]]


class ServedPolicies:
    """What this process serves now. Reads never wait; `apply` replaces everything at once."""

    def __init__(
        self,
        policies: Mapping[str, ServedPolicy] | None = None,
        *,
        episodes: EpisodeTable | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`policies` None: what is served is not known yet, and nobody is told that a policy does not exist."""
        self.episodes = episodes or EpisodeTable()
        self._is_known = policies is not None
        self._policies: dict[str, ServedPolicy] = {}
        self._ending: Mapping[str, Mapping[str, Revision]] = {}
        self._going_on: frozenset[tuple[str, str]] = frozenset()
        self._loaded: frozenset[tuple[str, str]] = frozenset()
        self._waiting: frozenset[str] = frozenset()
        self._unpromoted: frozenset[str] = frozenset()
        self._num_requests: Counter[tuple[str, str]] = Counter()
        self._now_s, self._begin_until_s = now_s, math.inf
        if policies is not None:
            self.apply(policies)

    @classmethod
    def fixed(cls, policies: Mapping[str, Sequence[Revision]]) -> ServedPolicies:
        """The first revision of each policy answers; all can be pinned."""
        served = {}
        for name, revisions in policies.items():
            if not revisions:
                raise ValueError(f"policy {name!r} has no revision, expected at least one")
            digests = [revision.revision for revision in revisions]
            if len(set(digests)) != len(digests):
                raise ValueError(f"policy {name!r} lists a revision twice: {digests}")
            served[name] = ServedPolicy(
                revisions={revision.revision: revision for revision in revisions}, shares=((digests[0], 1.0),)
            )
        return cls(served)

    def apply(
        self,
        policies: Mapping[str, ServedPolicy],
        *,
        ending: Mapping[str, Mapping[str, Revision]] | None = None,
        going_on: Collection[tuple[str, str]] = (),
        waiting: Collection[str] = (),
        unpromoted: Collection[str] = (),
    ) -> None:
        """Episodes in progress stay on their revision for as long as it can answer.

        `ending` has the revisions on which episodes in progress of a retired policy go on, and none begins. `going_on`
        has policy and revision of all on which episodes go on that began in other gateways. `waiting` should answer and
        cannot yet; nobody expects an answer of `unpromoted`.
        """
        for name, policy in policies.items():
            if not name:
                raise ValueError("a policy has an empty name")
            for revision in policy.revisions.values():
                if revision.description.name != name:
                    raise ValueError(
                        f"revision {revision.revision} was read for policy {revision.description.name!r}, "
                        f"listed under {name!r}"
                    )
        self._policies = {name: policies[name] for name in sorted(policies)}
        self._ending = ending or {}
        self._going_on = frozenset(going_on)
        answering = {name: policy.revisions for name, policy in policies.items()}
        self._loaded = frozenset(
            (name, revision)
            for held in (answering, self._ending)
            for name, all_of in held.items()
            for revision in all_of
        )
        self._waiting = frozenset(waiting)
        self._unpromoted = frozenset(unpromoted)
        self._is_known = True

    def begin_episodes_until(self, until_s: float) -> None:
        """From `until_s` of the monotonic clock on, only episodes in progress are routed."""
        self._begin_until_s = until_s

    @property
    def begins_episodes(self) -> bool:
        return self._now_s() < self._begin_until_s

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)

    def __contains__(self, policy: object) -> bool:
        return policy in self._policies

    @property
    def is_known(self) -> bool:
        """Whether this process was told what it serves, be it nothing."""
        return self._is_known

    @property
    def names(self) -> tuple[str, ...]:
        """All policies that should answer, also those of which nothing can yet; sorted."""
        return tuple(sorted({*self._policies, *self._waiting}))

    @property
    def known(self) -> frozenset[str]:
        """All policies that there are, also those of which nobody expects an answer."""
        return self._unpromoted.union(self.names)

    @property
    def loaded(self) -> frozenset[tuple[str, str]]:
        """Policy and revision of all that can answer here, be it only for episodes in progress."""
        return self._loaded

    def revisions(self, policy: str) -> tuple[Revision, ...]:
        """All revisions of a policy that can answer, the stable one first. Raises UnknownPolicyError."""
        served = self._served(policy)
        return served.stable, *(each for each in served.revisions.values() if each is not served.stable)

    def serving(self, policy: str) -> Revision:
        """The revision that stands for the policy: the stable one. Raises UnknownPolicyError."""
        return self._served(policy).stable

    def pinned(self, episode: Episode, revision: str) -> Revision:
        """The revision of that name. What answers the episode's requests that pin none stays as it is.

        Raises UnknownPolicyError, UnknownRevisionError, and NotReadyError where the policy serves nothing.
        """
        answering = self._ending.get(episode.policy, {}) if self.episodes.is_pinned(episode, revision) else {}
        if revision not in answering:
            answering = self._served(episode.policy).revisions
        if revision not in answering:
            raise UnknownRevisionError(episode.policy, revision, list(answering))
        self.episodes.hold_pinned(episode, revision)
        return answering[revision]

    def routed(self, episode: Episode, *, began_on: str = "") -> Revision:
        """The revision that answers this episode: the one it began on, or by the shares.

        `began_on` is what its robot says, and is believed of an episode that this gateway does not know, where such
        episodes go on with that revision.

        Raises UnknownPolicyError, and NotReadyError where it would have to begin and none may.
        """
        revision = self.episodes.revision(episode)
        if revision is None and (episode.policy, began_on) in self._going_on:
            revision = began_on
        if revision is not None and (ending := self._ending.get(episode.policy, {}).get(revision)) is not None:
            self.episodes.hold(episode, revision)
            return ending
        served = self._served(episode.policy)
        if revision is None or revision not in served.revisions:
            if not self.begins_episodes:
                raise NotReadyError(
                    "this gateway is cut off from its fleet and begins no episodes; ask another replica",
                    retry_after_s=1.0,
                )
            revision = draw(episode, served.shares)
        self.episodes.hold(episode, revision)
        return served.revisions[revision]

    def shadowing(self, policy: str) -> tuple[Shadow, Revision] | None:
        """The shadow of a policy, where it is here to be asked."""
        served = self._policies.get(policy)
        if served is None or served.shadow is None or served.shadow.revision not in served.revisions:
            return None
        return served.shadow, served.revisions[served.shadow.revision]

    @contextmanager
    def using(self, policy: str, revision: Revision) -> Iterator[None]:
        """For as long as a request is answered by a revision, which must not be unloaded meanwhile."""
        key = policy, revision.revision
        self._num_requests[key] += 1
        try:
            yield
        finally:
            self._num_requests[key] -= 1

    def num_in_progress(self, policy: str, revision: str) -> int:
        """Episodes that a revision still has to answer here, or requests where those are more: 0 when it has neither.

        Not the sum: nearly every request is one of an episode's, and a number that moved with each would be news for
        every heartbeat.
        """
        return max(self.episodes.count(policy, revision), self._num_requests[policy, revision])

    def _served(self, policy: str) -> ServedPolicy:
        served = self._policies.get(policy)
        if served is None:
            if policy in self._waiting or policy in self._unpromoted or not self._is_known:
                raise NotReadyError(f"no revision of policy {policy!r} is ready yet", retry_after_s=1.0)
            raise UnknownPolicyError(policy, [*self._policies, *self._waiting])
        return served
