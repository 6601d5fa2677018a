"""The life of a revision: its states and the changes between them that there are."""

from __future__ import annotations

from enum import StrEnum


class RevisionState(StrEnum):
    """Of the whole fleet: a gateway that is behind says so in its placement."""

    REGISTERED = "registered"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    SERVING = "serving"
    # Takes no new episodes; those in progress end on it.
    DRAINING = "draining"
    FAILED = "failed"
    UNLOADED = "unloaded"

    @property
    def wanted(self) -> bool:
        """Whether a gateway is to have it in its backend."""
        return self in _WANTED

    @property
    def answers(self) -> bool:
        """Whether every gateway has it ready, so that a request may be sent to it."""
        return self in _ANSWERS

    def may_become(self, state: RevisionState) -> bool:
        return state in _CHANGES[self]


_S = RevisionState
_WANTED = frozenset({_S.LOADING, _S.WARMING, _S.READY, _S.SERVING, _S.DRAINING})
_ANSWERS = frozenset({_S.READY, _S.SERVING, _S.DRAINING})
_CHANGES: dict[RevisionState, frozenset[RevisionState]] = {
    _S.REGISTERED: frozenset({_S.LOADING}),
    _S.LOADING: frozenset({_S.WARMING, _S.FAILED, _S.UNLOADED}),
    _S.WARMING: frozenset({_S.READY, _S.FAILED, _S.UNLOADED}),
    _S.READY: frozenset({_S.SERVING, _S.DRAINING, _S.FAILED, _S.UNLOADED}),
    _S.SERVING: frozenset({_S.DRAINING}),
    _S.DRAINING: frozenset({_S.READY, _S.SERVING, _S.UNLOADED}),
    _S.FAILED: frozenset({_S.LOADING}),
    _S.UNLOADED: frozenset({_S.LOADING}),
}
