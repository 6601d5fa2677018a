"""Is the process alive, and can it answer robots."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response, status

from service.admin.dependencies import Parts, Policies, ReadinessCheck, Ready
from service.admin.models import Liveness, PolicyReadiness, Readiness, RegistryContact

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Liveness:
    """Answers as long as the event loop turns."""
    return Liveness()


@router.get("/readyz", responses={status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Readiness}})
async def readyz(policies: Policies, is_ready: Ready, parts: Parts, response: Response) -> Readiness:
    """200 when the serving revision of every policy is ready and episodes may begin, otherwise 503; both say which.

    While there is no policy, or what there is is not known yet, no robot could be answered: 503 as well.
    """
    # Also those that should be served and of which nothing is here.
    revisions = {policy: policies.serving(policy).revision if policy in policies else "" for policy in policies.names}
    ready = await asyncio.gather(*(_is_ready(revision, is_ready) for revision in revisions.values()))
    serving = bool(ready) and all(ready) and policies.begins_episodes
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


async def _is_ready(revision: str, is_ready: ReadinessCheck) -> bool:
    return bool(revision) and await is_ready(revision)
