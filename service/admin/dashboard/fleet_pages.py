"""The pages of what is: all policies, one policy, one revision, the gateways; live parts have their own addresses.

A page is asked for, worked out and written in a thread: robots are answered meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query, Request, Response

from service.admin.dashboard.changes import DONE
from service.admin.dashboard.rendering import page
from service.admin.dashboard.views import (
    num_robots,
    policy_facts,
    policy_timeline,
    policy_view,
    shadow_view,
    traffic,
)
from service.admin.dashboard.visitors import PageRouter, Viewer
from service.admin.dependencies import AdminParts, Parts, Reader
from service.admin.revisions import Digest, Name
from service.gateway.metrics import UNKNOWN_POLICY
from service.registry import Registry

router = PageRouter()
Minutes = Annotated[int, Query()]


@router.get("/")
async def overview(request: Request, visitor: Viewer, parts: Parts, reader: Reader) -> Response:
    robots = num_robots(parts)
    return await reader.ask(
        lambda registry: page(request, "overview.html", visitor=visitor, **_overview(parts, registry, robots))
    )


@router.get("/live")
async def live_overview(request: Request, visitor: Viewer, parts: Parts, reader: Reader) -> Response:
    robots = num_robots(parts)
    return await reader.ask(
        lambda registry: page(request, "overview_live.html", visitor=visitor, **_overview(parts, registry, robots))
    )


@router.get("/policies/{policy}")
async def policy(
    request: Request,
    policy: Name,
    visitor: Viewer,
    parts: Parts,
    reader: Reader,
    minutes: Minutes = 10,
    done: str = "",
) -> Response:
    """`done` is the change that led here."""
    robots, notice = num_robots(parts), DONE.get(done, "")

    def answer(registry: Registry) -> Response:
        context = _policy(parts, registry, robots, policy, minutes)
        return page(request, "policy.html", visitor=visitor, notice=notice, **context)

    return await reader.ask(answer)


@router.get("/policies/{policy}/live")
async def live_policy(
    request: Request, policy: Name, visitor: Viewer, parts: Parts, reader: Reader, minutes: Minutes = 10
) -> Response:
    robots = num_robots(parts)

    def answer(registry: Registry) -> Response:
        return page(request, "policy_live.html", visitor=visitor, **_policy(parts, registry, robots, policy, minutes))

    return await reader.ask(answer)


@router.get("/policies/{policy}/revisions/{revision}")
async def revision(
    request: Request, policy: Name, revision: Digest, visitor: Viewer, parts: Parts, reader: Reader
) -> Response:
    robots = num_robots(parts)

    def answer(registry: Registry) -> Response:
        registry.revision(policy, revision)
        view = policy_view(parts, policy_facts(registry, registry.policy(policy)), robots)
        return page(
            request,
            "revision.html",
            visitor=visitor,
            policy=view,
            revision=next(each for each in view.revisions if each.record.revision == revision),
            placements=registry.placements(policy, revision),
            addresses={gateway.gateway_id: gateway.address for gateway in registry.gateways()},
        )

    return await reader.ask(answer)


@router.get("/gateways")
async def gateways(request: Request, visitor: Viewer, parts: Parts, reader: Reader) -> Response:
    own = parts.fleet.follower.gateway_id

    def answer(registry: Registry) -> Response:
        fleet = registry.fleet()
        placements = [
            (placement, record)
            for policy in fleet.policies.values()
            for record in policy.revisions.values()
            if record.state.wanted
            for placement in registry.placements(policy.name, record.revision)
        ]
        return page(
            request,
            "gateways.html",
            visitor=visitor,
            gateways=[
                (gateway, [pair for pair in placements if pair[0].gateway_id == gateway.gateway_id])
                for gateway in registry.gateways()
            ],
            generation=fleet.generation,
            own=own,
        )

    return await reader.ask(answer)


def _overview(parts: AdminParts, registry: Registry, robots: Mapping[str, int]) -> dict[str, Any]:
    facts = [policy_facts(registry, record) for record in registry.fleet().policies.values()]
    return {
        "policies": [policy_view(parts, each, robots) for each in facts],
        "timelines": {each.record.name: policy_timeline(parts, each, window_s=600) for each in facts},
        "num_gateways": len(registry.gateways()),
        "running": registry.operations(running=True),
        "address": parts.fleet.follower.address,
        "num_unknown": traffic(parts, UNKNOWN_POLICY).window.num_errors,
    }


def _policy(
    parts: AdminParts, registry: Registry, robots: Mapping[str, int], name: str, minutes: int
) -> dict[str, Any]:
    facts = policy_facts(registry, registry.policy(name))
    view = policy_view(parts, facts, robots)
    return {
        "policy": view,
        "shadow": shadow_view(parts, view),
        "timeline": policy_timeline(parts, facts, window_s=3600 if minutes >= 60 else 600),
        "operations": facts.operations,
        "address": parts.fleet.follower.address,
    }
