"""Which policies and revisions are served."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import status

from service.admin.authentication import ProtectedRouter
from service.admin.dependencies import Policies, Ready
from service.admin.models import PolicyDescription, PolicyList, Problem, RevisionDescription, RevisionList

router = ProtectedRouter(prefix="/v1/policies", tags=["policies"])

_NOT_FOUND: dict[int | str, dict[str, Any]] = {status.HTTP_404_NOT_FOUND: {"model": Problem}}


@router.get("")
async def list_policies(policies: Policies) -> PolicyList:
    return PolicyList(policies=[PolicyDescription.of(policies.serving(policy).description) for policy in policies])


@router.get("/{policy}", responses=_NOT_FOUND)
async def get_policy(policy: str, policies: Policies) -> PolicyDescription:
    return PolicyDescription.of(policies.serving(policy).description)


@router.get("/{policy}/revisions", responses=_NOT_FOUND)
async def list_revisions(policy: str, policies: Policies, is_ready: Ready) -> RevisionList:
    revisions = policies.revisions(policy)
    ready = await asyncio.gather(*(is_ready(revision.revision) for revision in revisions))
    return RevisionList(
        revisions=[
            RevisionDescription.of(revision, serving=index == 0, ready=one)
            for index, (revision, one) in enumerate(zip(revisions, ready, strict=True))
        ]
    )
