"""Is the process alive, and can it answer robots."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response, status

from service.admin.dependencies import Policies, Ready
from service.admin.models import Liveness, PolicyReadiness, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Liveness:
    """Answers as long as the event loop turns."""
    return Liveness()


@router.get("/readyz", responses={status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Readiness}})
async def readyz(policies: Policies, is_ready: Ready, response: Response) -> Readiness:
    """200 when the serving revision of every policy is ready, otherwise 503; both say which are."""
    revisions = {policy: policies.serving(policy).revision for policy in policies}
    ready = await asyncio.gather(*(is_ready(revision) for revision in revisions.values()))
    if not all(ready):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Readiness(
        ready=all(ready),
        policies=[
            PolicyReadiness(policy=policy, revision=revision, ready=one)
            for (policy, revision), one in zip(revisions.items(), ready, strict=True)
        ],
    )
