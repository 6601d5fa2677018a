"""Is the process alive, and can it answer robots."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response, status

from service.admin.dependencies import Parts, Policies, Ready
from service.admin.models import Liveness, PolicyReadiness, Readiness, RegistryContact

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Liveness:
    """Answers as long as the event loop turns."""
    return Liveness()


@router.get("/readyz", responses={status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Readiness}})
async def readyz(policies: Policies, is_ready: Ready, parts: Parts, response: Response) -> Readiness:
    """200 when the serving revision of every policy is ready and episodes may begin, otherwise 503; both say which."""
    revisions = {policy: policies.serving(policy).revision for policy in policies}
    ready = await asyncio.gather(*(is_ready(revision) for revision in revisions.values()))
    serving = all(ready) and policies.begins_episodes
    if not serving:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    follower = parts.fleet.follower
    if not policies.begins_episodes:
        registry = RegistryContact.CUT_OFF
    else:
        registry = RegistryContact.REACHABLE if follower.reachable else RegistryContact.LOST
    return Readiness(
        ready=serving,
        registry=registry,
        lease_s=follower.lease_s,
        policies=[
            PolicyReadiness(policy=policy, revision=revision, ready=one)
            for (policy, revision), one in zip(revisions.items(), ready, strict=True)
        ],
    )
