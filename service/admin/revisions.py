"""A policy, its revisions and its route: all that an operator changes about them, from registering to deleting.

What takes longer than a call answers 202 with an operation, to poll or to stream (operations.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, status

from service.admin.authentication import Actor, ProtectedRouter
from service.admin.dependencies import Changes, Policies, Reader
from service.admin.fleet_models import (
    GuardSettings,
    OperationDescription,
    PolicyStatus,
    PolicyStatusList,
    PromoteRequest,
    RegisterRequest,
    RevisionStatus,
    RollBackRequest,
    ShadowRequest,
    SplitRequest,
)
from service.admin.models import Problem
from service.errors import InvalidRequestError
from service.openpi.observation_map import ObservationMap, ObservationMapError, check_fits
from service.policies import POLICY_NAME, ServedPolicies

router = ProtectedRouter(prefix="/v1/fleet", tags=["fleet"])
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem}
    for code in (status.HTTP_400_BAD_REQUEST, status.HTTP_404_NOT_FOUND, status.HTTP_409_CONFLICT)
}
_ACCEPTED = status.HTTP_202_ACCEPTED
Name = Annotated[str, Path(pattern=f"^{POLICY_NAME}$")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]


@router.get("/policies")
async def list_policies(reader: Reader) -> PolicyStatusList:
    """Every policy with its route and all its revisions, as the fleet agrees on them."""
    fleet = await reader.ask(lambda registry: registry.fleet())
    return PolicyStatusList(
        generation=fleet.generation, policies=[PolicyStatus.of(policy) for policy in fleet.policies.values()]
    )


@router.get("/policies/{policy}", responses=_PROBLEMS)
async def get_policy(policy: Name, reader: Reader) -> PolicyStatus:
    return PolicyStatus.of(await reader.ask(lambda registry: registry.policy(policy)))


@router.put("/policies/{policy}/observationMap", responses=_PROBLEMS)
async def set_observation_map(
    policy: Name, values: dict[str, Any], reader: Reader, policies: Policies, actor: Actor
) -> PolicyStatus:
    """How foreign wires map onto the policy, for robots that connect from now on; an empty object takes it away."""
    _check_map(policy, values, policies)
    await reader.ask(lambda registry: registry.set_observation_map(policy, values, actor=actor))
    return PolicyStatus.of(await reader.ask(lambda registry: registry.policy(policy)))


@router.put("/policies/{policy}/guard", responses=_PROBLEMS)
async def set_guard(policy: Name, guard: GuardSettings, changes: Changes, actor: Actor) -> PolicyStatus:
    """When a change is rolled back without being asked."""
    return PolicyStatus.of(await changes.guard(policy, guard.to_guard(), actor=actor))


@router.post("/policies/{policy}/revisions", status_code=_ACCEPTED, responses=_PROBLEMS)
async def register_revision(
    policy: Name, request: RegisterRequest, changes: Changes, actor: Actor
) -> OperationDescription:
    """Reads and checks a checkpoint of the store, or fetches one, and makes it known. It is not loaded yet."""
    return OperationDescription.model_validate(
        await changes.register(policy, request.location, revision=request.revision, actor=actor)
    )


@router.get("/policies/{policy}/revisions/{revision}", responses=_PROBLEMS)
async def get_revision(policy: Name, revision: Digest, reader: Reader) -> RevisionStatus:
    await reader.ask(lambda registry: registry.revision(policy, revision))
    record = await reader.ask(lambda registry: registry.policy(policy))
    return next(each for each in PolicyStatus.of(record).revisions if each.revision == revision)


@router.delete("/policies/{policy}/revisions/{revision}", status_code=status.HTTP_204_NO_CONTENT, responses=_PROBLEMS)
async def delete_revision(policy: Name, revision: Digest, changes: Changes, actor: Actor) -> None:
    """Forgets a revision that is not loaded. Files of the store stay where they are."""
    await changes.delete(policy, revision, actor=actor)


@router.post("/policies/{policy}/revisions/{revision}:load", status_code=_ACCEPTED, responses=_PROBLEMS)
async def load_revision(policy: Name, revision: Digest, changes: Changes, actor: Actor) -> OperationDescription:
    """Loads, warms and probes it on every gateway. It takes no traffic."""
    return OperationDescription.model_validate(await changes.load(policy, revision, actor=actor))


@router.post("/policies/{policy}/revisions/{revision}:probe", status_code=_ACCEPTED, responses=_PROBLEMS)
async def probe_revision(policy: Name, revision: Digest, changes: Changes, actor: Actor) -> OperationDescription:
    """Probes one that is ready or serves again, on every gateway; the operation says how it went, nothing changes."""
    return OperationDescription.model_validate(await changes.probe(policy, revision, actor=actor))


@router.post("/policies/{policy}/revisions/{revision}:promote", status_code=_ACCEPTED, responses=_PROBLEMS)
async def promote_revision(
    policy: Name, revision: Digest, changes: Changes, actor: Actor, request: PromoteRequest | None = None
) -> OperationDescription:
    """Loads it if needed, then gives it all new episodes."""
    how = (request or PromoteRequest()).to_promotion()
    return OperationDescription.model_validate(await changes.promote(policy, revision, how, actor=actor))


@router.post("/policies/{policy}/revisions/{revision}:shadow", status_code=_ACCEPTED, responses=_PROBLEMS)
async def shadow_revision(
    policy: Name, revision: Digest, request: ShadowRequest, changes: Changes, actor: Actor
) -> OperationDescription:
    """Copies a share of the requests to it and compares; 0 ends that."""
    return OperationDescription.model_validate(await changes.shadow(policy, revision, request.share, actor=actor))


@router.post("/policies/{policy}/revisions/{revision}:drain", status_code=_ACCEPTED, responses=_PROBLEMS)
async def drain_revision(policy: Name, revision: Digest, changes: Changes, actor: Actor) -> OperationDescription:
    """Takes it out of a split; episodes in progress end on it, then it is unloaded."""
    return OperationDescription.model_validate(await changes.drain(policy, revision, actor=actor))


@router.post("/policies/{policy}/revisions/{revision}:unload", status_code=_ACCEPTED, responses=_PROBLEMS)
async def unload_revision(policy: Name, revision: Digest, changes: Changes, actor: Actor) -> OperationDescription:
    """Gives its memory back. Refused while it takes traffic."""
    return OperationDescription.model_validate(await changes.unload(policy, revision, actor=actor))


@router.post("/policies/{policy}:rollBack", status_code=_ACCEPTED, responses=_PROBLEMS)
async def roll_back(
    policy: Name, changes: Changes, actor: Actor, request: RollBackRequest | None = None
) -> OperationDescription:
    """Ends a split, or goes back to the revision before this one. Episodes in progress move.

    What else of the policy runs is ended for it, but for another roll-back or a retirement.
    """
    reason = (request or RollBackRequest()).reason
    return OperationDescription.model_validate(await changes.roll_back(policy, actor=actor, reason=reason))


@router.post("/policies/{policy}:retire", status_code=_ACCEPTED, responses=_PROBLEMS)
async def retire_policy(policy: Name, changes: Changes, actor: Actor) -> OperationDescription:
    """Ends serving it: no episode begins, those in progress end, then its revisions are unloaded."""
    return OperationDescription.model_validate(await changes.retire(policy, actor=actor))


@router.delete("/policies/{policy}", status_code=status.HTTP_204_NO_CONTENT, responses=_PROBLEMS)
async def delete_policy(policy: Name, changes: Changes, actor: Actor) -> None:
    """Forgets a policy that serves nothing, its revisions and its observation map. Files of the store stay."""
    await changes.delete_policy(policy, actor=actor)


@router.post("/policies/{policy}:split", status_code=_ACCEPTED, responses=_PROBLEMS)
async def split_policy(policy: Name, request: SplitRequest, changes: Changes, actor: Actor) -> OperationDescription:
    """Gives revisions a share of the new episodes each, pinned by episode; the stable one gets what is left."""
    guard = request.guard.to_guard() if request.guard else None
    operation = await changes.split(
        policy, request.shares, guard=guard, allow_schema_change=request.allow_schema_change, actor=actor
    )
    return OperationDescription.model_validate(operation)


def _check_map(policy: str, values: dict[str, Any], policies: ServedPolicies) -> None:
    """Raises InvalidRequestError for a map that no robot could use, as far as what is served here tells."""
    if not values:
        return
    try:
        observation_map = ObservationMap.from_json(values)
        if observation_map.policy != policy:
            raise ObservationMapError(f"policy is {observation_map.policy!r}, expected {policy!r}")
        if policy in policies:
            check_fits(observation_map, policies.serving(policy).description)
    except ObservationMapError as error:
        raise InvalidRequestError("observation_map", str(error)) from None
