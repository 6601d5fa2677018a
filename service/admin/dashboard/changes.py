"""What an operator can do from a page: what each change is called, what it will do, and how it is begun.

Owns the words, which are worked out from how things are, so that whoever confirms knows what they confirm. Does not own
carrying a change out (rollout/), whether it is allowed just now (the registry), or pages (change_pages.py).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from service.admin.dashboard.forms import Form
from service.admin.dashboard.rendering import counted, percent, size
from service.errors import InvalidRequestError
from service.policies import check_policy_name
from service.registry import Operation, PolicyRecord, RevisionRecord, RevisionState, Route
from service.rollout import Rollout
from service.rollout.operations import Promotion

_DIGEST = re.compile(r"([0-9a-f]{12,64})?")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a change is of, as the fleet is now."""

    # One without a name for a policy that is only to be.
    policy: PolicyRecord
    # None for a change of the policy as a whole.
    record: RevisionRecord | None
    # By revision, over all gateways.
    num_in_progress: Mapping[str, int]
    num_gateways: int

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def revision(self) -> RevisionRecord:
        assert self.record is not None
        return self.record

    @property
    def route(self) -> Route | None:
        return self.policy.route

    @property
    def may_change_schema(self) -> bool:
        """Whether the revision, or for a policy any of its revisions, has another schema than the stable one."""
        if self.route is None:
            return False
        records = self.policy.revisions
        changed = [self.record] if self.record is not None else records.values()
        return any(record.schema_digest != records[self.route.stable].schema_digest for record in changed)


Begin = Callable[[Rollout, Subject, Form, str], Awaitable[Operation | None]]


@dataclass(frozen=True, kw_only=True)
class Change:
    slug: str
    # As a verb, on links and buttons.
    verb: str
    title: Callable[[Subject], str]
    # What will happen, a sentence each.
    effects: Callable[[Subject], list[str]]
    # The template with the fields that it asks for; empty for none.
    fields: str
    begin: Begin
    # Takes something away that does not come back by itself.
    is_final: bool = False
    # What the policy's page says afterwards, for changes that are done at once.
    done: str = ""


def named(record: RevisionRecord) -> str:
    return f"{record.revision} ({record.variant})" if record.variant else record.revision


def _of_revision(verb: str) -> Callable[[Subject], str]:
    return lambda subject: f"{verb} {subject.revision.revision} of {subject.name}"


def _of_policy(verb: str) -> Callable[[Subject], str]:
    return lambda subject: f"{verb} {subject.name}"


def _loading(subject: Subject, record: RevisionRecord) -> str:
    if record.state.answers:
        return f"{record.revision} is loaded and has passed its probe on every gateway."
    return (
        f"{record.revision} is loaded beside what serves on {counted(subject.num_gateways, 'gateway')}, warmed and "
        f"probed; its weights are {size(record.num_bytes)}. If any of that fails, nothing else changes."
    )


def _in_progress(subject: Subject, revision: str) -> str:
    """Episodes and requests; with a verb for one thing behind it."""
    number = subject.num_in_progress.get(revision, 0)
    return f"What is in progress on {revision} ({number} now)" if number else f"What is in progress on {revision}"


def _promote_effects(subject: Subject) -> list[str]:
    record, route = subject.revision, subject.route
    effects = [_loading(subject, record), f"Then all new episodes of {subject.name} go to {record.revision}."]
    if route is None:
        return [*effects, "Nothing serves yet, so this begins serving."]
    others = [name for name in route.revisions if name != record.revision]
    effects += [
        f"{_in_progress(subject, name)} ends there, unless you let it move; {name} then drains and is unloaded, unless "
        "you keep it."
        for name in others
    ]
    if route.stable != record.revision:
        effects.append(f"Roll back returns to {route.stable}.")
    if subject.may_change_schema:
        effects.append(
            f"Its schema is another than that of {route.stable}, so this is refused unless you allow it: robots that "
            "play now refuse its actions until they start anew."
        )
    return effects


def _shadow_effects(subject: Subject) -> list[str]:
    record, shadow = subject.revision, subject.policy.shadow
    effects = [
        _loading(subject, record),
        f"The share you choose of {subject.name}'s requests is copied to {record.revision}. No robot waits for its "
        "answers or plays them.",
        f"How far its actions are from those served shows on the page of {subject.name}.",
        "0 % ends it.",
    ]
    if shadow is not None and shadow.revision != record.revision:
        effects.insert(1, f"{shadow.revision} stops being the shadow.")
    return effects


def _drain_effects(subject: Subject) -> list[str]:
    record, route = subject.revision, subject.route
    assert route is not None
    share = dict(route.shares).get(record.revision, 0.0)
    return [
        f"{record.revision} gets no new episodes. Its {percent(share)} go to {route.stable}.",
        f"{_in_progress(subject, record.revision)} ends there; then it is unloaded.",
    ]


def _unload_effects(subject: Subject) -> list[str]:
    record = subject.revision
    effects = [f"{record.revision} gives its memory back on {counted(subject.num_gateways, 'gateway')}."]
    if record.state is RevisionState.DRAINING:
        effects.append(f"{_in_progress(subject, record.revision)} moves to what serves, in the middle of an episode.")
    if subject.policy.shadow is not None and subject.policy.shadow.revision == record.revision:
        effects.append("It stops being the shadow.")
    if subject.route is not None and subject.route.previous == record.revision:
        effects.append("A roll-back to it then has to load it first.")
    return effects


def _delete_effects(subject: Subject) -> list[str]:
    record = subject.revision
    effects = [
        f"{record.revision} is forgotten: it can be loaded again only after it was registered again.",
        f"Files of the store stay where they are ({record.location}); a download goes with its last policy.",
    ]
    if subject.route is not None and subject.route.previous == record.revision:
        effects.append("There is then nothing to roll back to.")
    return effects


def _split_effects(subject: Subject) -> list[str]:
    assert subject.route is not None
    return [
        f"Each revision gets its share of the new episodes, {subject.route.stable} what is left. An episode stays on "
        "the revision it began on.",
        "A revision that is not loaded yet is loaded, warmed and probed first; if that fails, nothing changes.",
        "One whose share becomes 0 drains and is unloaded.",
    ]


def _roll_back_effects(subject: Subject) -> list[str]:
    route = subject.route
    assert route is not None
    if len(route.shares) > 1:
        others = ", ".join(route.revisions[1:])
        return [f"{route.stable} gets all new episodes again, {others} none.", *_moved(subject, route.revisions[1:])]
    previous = subject.policy.revisions.get(route.previous)
    loading = [_loading(subject, previous)] if previous is not None else []
    return [
        *loading,
        f"All new episodes of {subject.name} go to {route.previous} again, none to {route.stable}.",
        *_moved(subject, (route.stable,)),
    ]


def _moved(subject: Subject, revisions: tuple[str, ...]) -> list[str]:
    return [
        *(f"{_in_progress(subject, name)} moves with them at once; it is then unloaded." for name in revisions),
        f"What else of {subject.name} is being changed is cancelled for it.",
    ]


def _retire_effects(subject: Subject) -> list[str]:
    route = subject.route
    assert route is not None
    return [
        f"No new episode of {subject.name} begins, on any gateway.",
        *(f"{_in_progress(subject, name)} ends there; then it is unloaded." for name in route.revisions),
        "Everything else of it that is loaded is unloaded. Other policies go on as they are.",
        "Promoting a revision serves it again.",
    ]


def _delete_policy_effects(subject: Subject) -> list[str]:
    return [
        f"{subject.name} is forgotten, with its observation map and "
        f"{counted(len(subject.policy.revisions), 'revision')}.",
        "Files of the store stay where they are; downloads are removed, unless another policy has them.",
        "Its entries in the audit log stay.",
    ]


def _guard_effects(subject: Subject) -> list[str]:
    return [
        f"A revision of {subject.name} that was just given traffic is rolled back by itself when it breaks a limit.",
        "A limit that you leave empty is not watched.",
    ]


def _register_effects(subject: Subject) -> list[str]:
    return [
        "The checkpoint is read, or fetched, and every file of it is compared with its manifest.",
        "It is then known, but not loaded: nothing that serves changes.",
    ]


async def _promote(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    how = Promotion(
        move_episodes=form.checked("move_episodes"),
        keep_previous=form.checked("keep_previous"),
        allow_schema_change=form.checked("allow_schema_change"),
        guard=form.guard(),
    )
    return await rollout.promote(subject.name, subject.revision.revision, how, actor=actor)


async def _load(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.load(subject.name, subject.revision.revision, actor=actor)


async def _shadow(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    form.required("share")
    share = form.share("share") or 0.0
    return await rollout.shadow(subject.name, subject.revision.revision, share, actor=actor)


async def _drain(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.drain(subject.name, subject.revision.revision, actor=actor)


async def _unload(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.unload(subject.name, subject.revision.revision, actor=actor)


async def _delete(rollout: Rollout, subject: Subject, form: Form, actor: str) -> None:
    await rollout.delete(subject.name, subject.revision.revision, actor=actor)


async def _split(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.split(
        subject.name,
        form.shares(),
        guard=form.guard(),
        allow_schema_change=form.checked("allow_schema_change"),
        actor=actor,
    )


async def _roll_back(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.roll_back(subject.name, actor=actor, reason=form.text("reason", most_chars=1024))


async def _probe(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.probe(subject.name, subject.revision.revision, actor=actor)


async def _retire(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    return await rollout.retire(subject.name, actor=actor)


async def _delete_policy(rollout: Rollout, subject: Subject, form: Form, actor: str) -> None:
    await rollout.delete_policy(subject.name, actor=actor)


async def _guard(rollout: Rollout, subject: Subject, form: Form, actor: str) -> None:
    await rollout.guard(subject.name, form.guard(), actor=actor)


async def _register(rollout: Rollout, subject: Subject, form: Form, actor: str) -> Operation:
    policy = subject.name or form.required("policy")
    try:
        check_policy_name(policy)
    except ValueError as error:
        raise InvalidRequestError("policy", str(error)) from None
    location, revision = form.required("location"), form.text("revision", most_chars=64)
    if _DIGEST.fullmatch(revision) is None:
        raise InvalidRequestError("revision", f"{revision!r} came, expected 12 to 64 hexadecimal digits, or nothing")
    return await rollout.register(policy, location, revision=revision, actor=actor)


OF_REVISION = (
    Change(
        slug="promote",
        verb="Promote",
        title=_of_revision("Promote"),
        effects=_promote_effects,
        fields="fields_promote.html",
        begin=_promote,
    ),
    Change(
        slug="load",
        verb="Load",
        title=_of_revision("Load"),
        effects=lambda subject: [_loading(subject, subject.revision), "It takes no traffic."],
        fields="",
        begin=_load,
    ),
    Change(
        slug="probe",
        verb="Probe",
        title=_of_revision("Probe"),
        effects=lambda subject: [
            f"Its recorded observations are asked of it again on {counted(subject.num_gateways, 'gateway')}, beside "
            "what robots ask, and its answers compared.",
            "Nothing is changed, whatever comes out.",
        ],
        fields="",
        begin=_probe,
    ),
    Change(
        slug="shadow",
        verb="Shadow",
        title=_of_revision("Shadow traffic for"),
        effects=_shadow_effects,
        fields="fields_shadow.html",
        begin=_shadow,
    ),
    Change(
        slug="drain",
        verb="Drain",
        title=_of_revision("Drain"),
        effects=_drain_effects,
        fields="",
        begin=_drain,
    ),
    Change(
        slug="unload",
        verb="Unload",
        title=_of_revision("Unload"),
        effects=_unload_effects,
        fields="",
        begin=_unload,
        is_final=True,
    ),
    Change(
        slug="delete",
        verb="Delete",
        title=_of_revision("Delete"),
        effects=_delete_effects,
        fields="",
        begin=_delete,
        is_final=True,
        done="The revision is deleted.",
    ),
)
OF_POLICY = (
    Change(
        slug="split",
        verb="Split traffic",
        title=_of_policy("Split the traffic of"),
        effects=_split_effects,
        fields="fields_split.html",
        begin=_split,
    ),
    Change(
        slug="roll-back",
        verb="Roll back",
        title=_of_policy("Roll back"),
        effects=_roll_back_effects,
        fields="fields_roll_back.html",
        begin=_roll_back,
    ),
    Change(
        slug="guard",
        verb="Set guard",
        title=_of_policy("Set the guard of"),
        effects=_guard_effects,
        fields="fields_guard.html",
        begin=_guard,
        done="The guard is set.",
    ),
    Change(
        slug="retire",
        verb="Retire",
        title=_of_policy("Retire"),
        effects=_retire_effects,
        fields="",
        begin=_retire,
        is_final=True,
    ),
    Change(
        slug="delete-policy",
        verb="Delete policy",
        title=_of_policy("Delete"),
        effects=_delete_policy_effects,
        fields="",
        begin=_delete_policy,
        is_final=True,
    ),
    Change(
        slug="register",
        verb="Register revision",
        title=lambda subject: f"Register a revision of {subject.name}" if subject.name else "Register a revision",
        effects=_register_effects,
        fields="fields_register.html",
        begin=_register,
    ),
)
REGISTER = OF_POLICY[-1]
VERBS = {change.slug: change.verb for change in (*OF_REVISION, *OF_POLICY)}
DONE = {change.slug: change.done for change in (*OF_REVISION, *OF_POLICY) if change.done}
