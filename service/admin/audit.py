"""Who did what, when, from which revision to which."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from service.admin.authentication import ProtectedRouter
from service.admin.dependencies import Reader
from service.admin.fleet_models import AuditDescription, AuditList

# Of an entry, and no larger than a database's own can be.
EntryNumber = Annotated[int, Query(ge=1, le=2**63 - 1)]
router = ProtectedRouter(prefix="/v1/audit", tags=["audit"])


@router.get("")
async def list_audit(
    reader: Reader,
    policy: str = "",
    before: EntryNumber | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditList:
    """The newest first; `before` is the number of the last entry that was seen."""
    entries = await reader.ask(lambda registry: registry.audit(policy, before=before, most=limit))
    return AuditList(entries=[AuditDescription.model_validate(entry) for entry in entries])
