"""The pages of what was done: operations with their progress and their end before its time, and the audit log."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from service.admin.audit import EntryNumber
from service.admin.dashboard.rendering import page, segment
from service.admin.dashboard.visitors import PageRouter, Viewer, Visitor
from service.admin.dependencies import Parts, Reader
from service.registry import Registry

router = PageRouter()
_PER_PAGE = 50
_SEE_OTHER = 303


@router.get("/operations")
async def operations(request: Request, visitor: Viewer, reader: Reader) -> Response:
    return await reader.ask(lambda registry: _operations(registry, request, "operations.html", visitor))


@router.get("/operations/live")
async def live_operations(request: Request, visitor: Viewer, reader: Reader) -> Response:
    return await reader.ask(lambda registry: _operations(registry, request, "operations_live.html", visitor))


@router.get("/operations/{operation}")
async def operation(request: Request, operation: str, visitor: Viewer, reader: Reader) -> Response:
    return await reader.ask(lambda registry: _operation(registry, request, "operation.html", visitor, operation))


@router.post("/operations/{operation}/cancel")
async def cancel(operation: str, visitor: Viewer, parts: Parts) -> Response:
    await parts.fleet.rollout.cancel(operation, actor=visitor.caller.actor)
    return RedirectResponse(f"/operations/{segment(operation)}", _SEE_OTHER)


@router.get("/operations/{operation}/live")
async def live_operation(request: Request, operation: str, visitor: Viewer, reader: Reader) -> Response:
    return await reader.ask(lambda registry: _operation(registry, request, "operation_live.html", visitor, operation))


@router.get("/audit")
async def audit(
    request: Request, visitor: Viewer, reader: Reader, policy: str = "", before: EntryNumber | None = None
) -> Response:
    """The newest first; `before` is the number of the last entry of the page before."""

    def answer(registry: Registry) -> Response:
        # One more than is shown tells whether there is a page after this one.
        entries = registry.audit(policy, before=before, most=_PER_PAGE + 1)
        return page(
            request,
            "audit.html",
            visitor=visitor,
            entries=entries[:_PER_PAGE],
            older=entries[_PER_PAGE - 1].number if len(entries) > _PER_PAGE else None,
            before=before,
            policies=registry.audited_policies(),
            chosen=policy,
        )

    return await reader.ask(answer)


def _operations(registry: Registry, request: Request, template: str, visitor: Visitor) -> Response:
    return page(request, template, visitor=visitor, operations=registry.operations(most=_PER_PAGE))


def _operation(registry: Registry, request: Request, template: str, visitor: Visitor, operation: str) -> Response:
    return page(request, template, visitor=visitor, operation=registry.operation(operation))
