"""Which policies are served, and by which revisions.

Owns the lookup from a policy's name and an optional pin to a revision. Does not own loading (revision.py), readiness
(the backend knows it) or changes while serving: what is served is fixed when the service starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from service.errors import UnknownPolicyError, UnknownRevisionError
from service.revision import Revision


class ServedPolicies:
    """Policy name to its revisions; the first of them answers requests that pin none."""

    def __init__(self, policies: Mapping[str, Sequence[Revision]]) -> None:
        for name, revisions in policies.items():
            if not name:
                raise ValueError("a policy has an empty name")
            if not revisions:
                raise ValueError(f"policy {name!r} has no revision, expected at least one")
            digests = [revision.revision for revision in revisions]
            if len(set(digests)) != len(digests):
                raise ValueError(f"policy {name!r} lists a revision twice: {digests}")
            for revision in revisions:
                if revision.description.name != name:
                    raise ValueError(
                        f"revision {revision.revision} was read for policy {revision.description.name!r}, "
                        f"listed under {name!r}"
                    )
        self._policies = {name: tuple(policies[name]) for name in sorted(policies)}

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)

    def revisions(self, policy: str) -> tuple[Revision, ...]:
        """All revisions of a policy, the serving one first. Raises UnknownPolicyError."""
        try:
            return self._policies[policy]
        except KeyError:
            raise UnknownPolicyError(policy, self._policies) from None

    def serving(self, policy: str) -> Revision:
        """The revision that answers requests which pin none. Raises UnknownPolicyError."""
        return self.revisions(policy)[0]

    def pinned(self, policy: str, revision: str) -> Revision:
        """The revision of that name. Raises UnknownPolicyError, UnknownRevisionError."""
        for candidate in self.revisions(policy):
            if candidate.revision == revision:
                return candidate
        raise UnknownRevisionError(policy, revision, [candidate.revision for candidate in self.revisions(policy)])
