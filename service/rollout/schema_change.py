"""Whether a revision means by its numbers what the one that serves does.

Owns the refusal of one that does not: robots that were told the one schema play no action of the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import ConflictError
from service.registry import PolicyRecord

TRAFFIC = "robots that play the one refuse the other until they start anew; allow_schema_change, if that is meant"
SHADOW = "it could read no copy of a request, nor be compared"


def require_same_schema(policy: PolicyRecord, revisions: Iterable[str], *, why: str = TRAFFIC) -> None:
    """Raises ConflictError, which ends with `why`, for a revision whose schema digest is not the stable one's.

    One that is not known is for others to refuse, and where nothing serves nobody was told anything.
    """
    if policy.route is None:
        return
    stable = policy.revisions[policy.route.stable]
    for record in (policy.revisions[name] for name in revisions if name in policy.revisions):
        if record.schema_digest != stable.schema_digest:
            raise ConflictError(
                f"revision {record.revision} has schema {record.schema_digest[:12]}, {stable.revision}, which serves, "
                f"has {stable.schema_digest[:12]}: {why}"
            )
