"""The pages that ask "are you sure": what a change will do, its options, and a button. Errors come back to the form.

Owns a route to look and one to confirm for each change. Does not own what they say or do (changes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse

from service.admin.dashboard.changes import OF_POLICY, OF_REVISION, REGISTER, Change, Subject
from service.admin.dashboard.forms import SHARE_OF, Form
from service.admin.dashboard.rendering import page, segment
from service.admin.dashboard.views import fitting_changes, policy_facts
from service.admin.dashboard.visitors import Fields, PageRouter, Viewer, Visitor
from service.admin.dependencies import Parts, Reader
from service.admin.revisions import Digest, Name
from service.errors import ConflictError, ServiceError
from service.registry import Operation, PolicyRecord, Registry
from service.revision import RevisionError

router = PageRouter()
_SEE_OTHER = 303


async def _policy_subject(policy: Name, reader: Reader) -> Subject:
    return await reader.ask(lambda registry: _subject(registry, policy, ""))


async def _revision_subject(policy: Name, revision: Digest, reader: Reader) -> Subject:
    return await reader.ask(lambda registry: _subject(registry, policy, revision))


async def _no_subject() -> Subject:
    nobody = PolicyRecord(name="", route=None, route_changed_at=None, revisions={}, observation_map={})
    return Subject(policy=nobody, record=None, num_in_progress={}, num_gateways=0)


def _subject(registry: Registry, policy: str, revision: str) -> Subject:
    """Blocking. Raises UnknownPolicyError, UnknownRevisionError."""
    record = registry.revision(policy, revision) if revision else None
    facts = policy_facts(registry, registry.policy(policy))
    return Subject(
        policy=facts.record,
        record=record,
        num_in_progress=facts.num_in_progress,
        num_gateways=len(registry.gateways()),
    )


def _add_routes(change: Change, path: str, subject_of: Callable[..., Any]) -> None:
    async def look(request: Request, visitor: Viewer, subject: Subject = Depends(subject_of)) -> Response:
        _require_fitting(change, subject)
        return _form_page(request, visitor, change, subject, _defaults(change, subject))

    async def confirm(
        request: Request, visitor: Viewer, parts: Parts, fields: Fields, subject: Subject = Depends(subject_of)
    ) -> Response:
        try:
            operation = await change.begin(parts.fleet.rollout, subject, Form(fields), visitor.caller.actor)
        except (ServiceError, RevisionError) as error:
            entered = {name: values[0] for name, values in fields.items()}
            return _form_page(request, visitor, change, subject, entered, error)
        return RedirectResponse(_next_page(change, subject, operation), _SEE_OTHER)

    router.add_api_route(path, look, methods=["GET"])
    router.add_api_route(path, confirm, methods=["POST"])


def _require_fitting(change: Change, subject: Subject) -> None:
    """A link may be older than the state of what it is to. What a form asks for the registry judges by itself."""
    if change.slug not in fitting_changes(subject.policy, subject.record):
        now = f"{subject.record.revision} is {subject.record.state}" if subject.record else "there is nothing to change"
        raise ConflictError(f"{change.verb.lower()} does not fit {subject.name} as it is now: {now}")


def _form_page(
    request: Request,
    visitor: Visitor,
    change: Change,
    subject: Subject,
    values: Mapping[str, str],
    error: Exception | None = None,
) -> Response:
    field = error.field if isinstance(error, ServiceError) else "location"
    return page(
        request,
        "change.html",
        status_code=200 if error is None else 409 if isinstance(error, ConflictError) else 400,
        visitor=visitor,
        change=change,
        subject=subject,
        values=values,
        field=field if error is not None else "",
        problem=str(error).removeprefix(f"{field}: ") if error is not None else "",
    )


def _defaults(change: Change, subject: Subject) -> dict[str, str]:
    """What stands in a form that was just opened: how things are now."""
    route = subject.route
    if route is None:
        return {}
    if change.slug == "shadow":
        return {"share": _percent(route.shadow.share) if route.shadow else "10"}
    shares = {f"{SHARE_OF}{revision}": _percent(share) for revision, share in route.shares[1:]}
    guard, latency_s = route.guard, route.guard.max_latency_p95_s
    return {
        **shares,
        "max_error_rate": "" if guard.max_error_rate is None else _percent(guard.max_error_rate),
        "max_violation_rate": "" if guard.max_violation_rate is None else _percent(guard.max_violation_rate),
        "max_latency_p95_ms": "" if latency_s is None else f"{1000 * latency_s:g}",
        "window_s": f"{guard.window_s:g}",
        "min_requests": f"{guard.min_requests}",
        "watch_min": f"{guard.watch_s / 60:g}",
    }


def _percent(share: float) -> str:
    return f"{round(100 * share, 6):g}"


def _next_page(change: Change, subject: Subject, operation: Operation | None) -> str:
    if operation is not None:
        return f"/operations/{operation.operation_id}"
    if change.slug == "delete-policy":
        # It has no page any more; what was done to it stays.
        return f"/audit?policy={segment(subject.name)}"
    return f"/policies/{segment(subject.name)}?done={change.slug}"


for each in OF_REVISION:
    _add_routes(each, f"/policies/{{policy}}/revisions/{{revision}}/{each.slug}", _revision_subject)
for each in OF_POLICY:
    _add_routes(each, f"/policies/{{policy}}/{each.slug}", _policy_subject)
_add_routes(REGISTER, "/register", _no_subject)
