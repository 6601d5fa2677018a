"""A change of what serves is made on every gateway or on none, and episodes in progress end where they began."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from service.episodes import Episode
from service.errors import ConflictError, InvalidRequestError, NotReadyError
from service.gateway import GatewayLimits
from service.gateway.answers import ChunkAnswerer
from service.gateway.metrics import GatewayMetrics
from service.registry import OperationState, RevisionState
from service.revision import RevisionError
from service.rollout.operations import Promotion

S = RevisionState
POLICY = "tabletop"


def episode(number: int) -> Episode:
    return Episode(policy=POLICY, robot_id=f"robot-{number}", episode_id="1")


async def serving(fleet, process, *names: str) -> list[str]:
    """Registers checkpoints and promotes the first of them."""
    revisions = [await process.registered(fleet.checkpoint(name, variant=name)) for name in names]
    await process.carried_out(process.rollout.promote(POLICY, revisions[0], actor="ada"))
    return revisions


def states(process) -> dict[str, RevisionState]:
    return {name: record.state for name, record in process.registry.policy(POLICY).revisions.items()}


async def test_a_promotion_loads_first_and_moves_only_new_episodes(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    assert process.policies.routed(episode(1)).revision == old
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    ended = await process.rollout.ended(operation.operation_id)
    assert (ended.state, ended.error) == (OperationState.SUCCEEDED, "")
    assert ended.steps == ("loading", "warming", "probed, ready", "every gateway routes by it")
    assert process.policies.routed(episode(1)).revision == old
    assert process.policies.routed(episode(2)).revision == new
    assert states(process) == {old: S.DRAINING, new: S.SERVING}
    process.now_s[0] = 61.0
    await process.until(lambda: old not in process.models.loaded)
    assert states(process) == {old: S.UNLOADED, new: S.SERVING}
    assert process.policies.routed(episode(1)).revision == new


async def test_a_draining_revision_that_is_asked_for_again_is_not_unloaded_meanwhile(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    assert process.policies.routed(episode(1)).revision == old
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    await process.rollout.ended(operation.operation_id)
    assert states(process) == {old: S.DRAINING, new: S.SERVING}
    operation = await process.rollout.shadow(POLICY, old, 0.5, actor="ada")
    ended = await process.rollout.ended(operation.operation_id)
    assert (ended.state, ended.error) == (OperationState.SUCCEEDED, "")
    process.now_s[0] = 61.0
    await process.until(lambda: states(process) == {old: S.READY, new: S.SERVING})


async def test_episodes_that_are_told_to_move_do_so_at_once(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    assert process.policies.routed(episode(1)).revision == old
    operation = await process.rollout.promote(POLICY, new, Promotion(move_episodes=True), actor="ada")
    await process.rollout.ended(operation.operation_id)
    assert process.policies.routed(episode(1)).revision == new
    await process.until(lambda: states(process)[old] is S.UNLOADED)


@pytest.mark.parametrize("when", ["checkpoint", "backend"])
async def test_a_revision_that_fails_leaves_the_old_one_serving_and_says_why(fleet, when):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    if when == "checkpoint":
        (fleet.store / "new" / "model.safetensors").write_bytes(b"WEIGHTS")
    else:
        process.models.refusals[new] = RevisionError("probe.npz: a chunk is off by 3")
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    ended = await process.rollout.ended(operation.operation_id)
    assert ended.state is OperationState.FAILED
    assert ("model.safetensors" if when == "checkpoint" else "off by 3") in ended.error
    assert states(process) == {old: S.SERVING, new: S.FAILED}
    assert process.registry.revision(POLICY, new).error == ended.error
    assert process.policies.routed(episode(2)).revision == old
    assert process.registry.audit(POLICY)[0].outcome == ended.error
    # What was wrong may be mended, and the same revision loaded.
    process.models.refusals.clear()
    shutil.rmtree(fleet.store / "new")
    fleet.checkpoint("new", variant="new")
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    assert (await process.rollout.ended(operation.operation_id)).state is OperationState.SUCCEEDED


async def test_a_load_that_ends_in_an_error_nobody_foresaw_fails_the_revision_and_says_which(fleet, caplog):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    process.models.refusals[new] = ZeroDivisionError("of a kind that nobody thought of")
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    ended = await asyncio.wait_for(process.rollout.ended(operation.operation_id), 5)
    assert ended.state is OperationState.FAILED
    assert "ZeroDivisionError('of a kind that nobody thought of')" in ended.error
    assert states(process) == {old: S.SERVING, new: S.FAILED}
    (logged,) = [record for record in caplog.records if record.message == "loading failed"]
    assert logged.exc_info is not None and logged.exc_info[0] is ZeroDivisionError
    assert process.policies.routed(episode(1)).revision == old


async def test_a_revision_that_takes_too_long_fails_and_is_given_up(fleet):
    first = fleet.process("a")
    await first.start()
    old, new = await serving(fleet, first, "old", "new")
    await first.stop()
    process = fleet.process("b", load_timeout_s=0.3)
    process.models.holds[new] = asyncio.Event()
    await process.start()
    await process.until(lambda: old in process.models.loaded)
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    ended = await process.rollout.ended(operation.operation_id)
    assert ended.error == "not ready within 0.3 s"
    assert states(process) == {old: S.SERVING, new: S.FAILED}


async def test_two_gateways_promote_together_and_only_once_both_are_ready(fleet):
    first, second = fleet.process("a"), fleet.process("b")
    await first.start()
    await second.start()
    old, new = await serving(fleet, first, "old", "new")
    second.models.holds[new] = asyncio.Event()
    operation = await first.rollout.promote(POLICY, new, actor="ada")
    await first.until(lambda: new in first.models.loaded)
    assert {process.policies.serving(POLICY).revision for process in (first, second)} == {old}
    second.models.holds[new].set()
    ended = await first.rollout.ended(operation.operation_id)
    assert ended.state is OperationState.SUCCEEDED, ended.error
    assert {process.policies.serving(POLICY).revision for process in (first, second)} == {new}


async def test_a_gateway_that_refuses_keeps_the_others_on_the_old_revision(fleet):
    first, second = fleet.process("a"), fleet.process("b")
    await first.start()
    await second.start()
    old, new = await serving(fleet, first, "old", "new")
    second.models.refusals[new] = RevisionError("probe.npz: a chunk is off by 3")
    operation = await first.rollout.promote(POLICY, new, actor="ada")
    ended = await first.rollout.ended(operation.operation_id)
    assert ended.error == "probe.npz: a chunk is off by 3"
    assert {process.policies.serving(POLICY).revision for process in (first, second)} == {old}
    await first.until(lambda: new not in first.models.loaded)


async def test_a_gateway_that_died_does_not_hold_up_the_fleet(fleet):
    first, second = fleet.process("a", gateway_lost_s=0.5), fleet.process("b")
    await first.start()
    await second.start()
    _, new = await serving(fleet, first, "old", "new")
    await second.crash()
    operation = await first.rollout.promote(POLICY, new, actor="ada")
    ended = await first.rollout.ended(operation.operation_id)
    assert ended.state is OperationState.SUCCEEDED, ended.error
    assert [gateway.gateway_id for gateway in first.registry.gateways()] == ["a"]


async def test_a_roll_back_goes_to_the_one_before_and_moves_episodes(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    operation = await process.rollout.promote(POLICY, new, Promotion(keep_previous=True), actor="ada")
    await process.rollout.ended(operation.operation_id)
    await process.until(lambda: states(process)[old] is S.READY)
    assert process.policies.routed(episode(1)).revision == new
    process.models.calls.clear()
    operation = await process.rollout.roll_back(POLICY, actor="ada", reason="it shakes")
    ended = await process.rollout.ended(operation.operation_id)
    assert ended.state is OperationState.SUCCEEDED, ended.error
    assert process.policies.routed(episode(1)).revision == old
    assert ("load", old) not in process.models.calls
    entry = next(entry for entry in process.registry.audit(POLICY) if entry.action == "roll back")
    assert (entry.from_revision, entry.to_revision, entry.detail) == (new, old, {"reason": "it shakes"})


async def test_a_roll_back_lets_every_request_that_waits_have_its_chunk(fleet, kit):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    await process.carried_out(process.rollout.promote(POLICY, new, actor="ada"))
    process.models.answer_holds[new] = asyncio.Event()
    with ThreadPoolExecutor(1) as threads:
        answerer = ChunkAnswerer(
            policies=process.policies,
            backend=process.models,
            limits=GatewayLimits(),
            metrics=GatewayMetrics(CollectorRegistry()),
            decode_threads=threads,
        )
        asked = []
        for number in range(4):
            request = kit.request(embodiment="sawyer")
            request.robot_id = f"robot-{number}"
            asked.append(asyncio.create_task(answerer.answer(request, timeout_s=20.0)))
        # One is in the model, the others are before it.
        await process.until(lambda: ("predict", new) in process.models.calls)
        await process.carried_out(process.rollout.roll_back(POLICY, actor="ada"))
        await process.look_at_drains()
        process.models.answer_holds[new].set()
        answers = await asyncio.gather(*asked)
    assert [getattr(answer, "revision", answer) for answer in answers] == [new] * 4
    await process.until(lambda: states(process) == {old: S.SERVING, new: S.UNLOADED})


async def test_there_is_nothing_to_roll_back_to_at_first(fleet):
    process = fleet.process("a")
    await process.start()
    await serving(fleet, process, "old")
    with pytest.raises(ConflictError, match="nothing to go back to"):
        await process.rollout.roll_back(POLICY, actor="ada")


async def test_a_split_draws_its_share_of_new_episodes_and_a_roll_back_ends_it(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    operation = await process.rollout.split(POLICY, {new: 0.2}, actor="ada")
    assert (await process.rollout.ended(operation.operation_id)).state is OperationState.SUCCEEDED
    drawn = [process.policies.routed(episode(number)).revision for number in range(1000)]
    assert 150 < drawn.count(new) < 250
    assert states(process) == {old: S.SERVING, new: S.SERVING}
    # Twice asked, the same answer.
    assert drawn == [process.policies.routed(episode(number)).revision for number in range(1000)]
    operation = await process.rollout.roll_back(POLICY, actor="ada")
    await process.rollout.ended(operation.operation_id)
    assert {process.policies.routed(episode(number)).revision for number in range(1000)} == {old}


async def test_a_revision_of_another_schema_takes_no_traffic_unless_that_is_allowed(fleet):
    process = fleet.process("a")
    await process.start()
    (old,) = await serving(fleet, process, "old")
    new = await process.registered(fleet.checkpoint("new", config={"execution_horizon": 4}))
    digests = [record.schema_digest[:12] for record in process.registry.policy(POLICY).revisions.values()]
    refused = f"revision {new} has schema {digests[1]}, {old}, which serves, has {digests[0]}: robots .* refuse"
    with pytest.raises(ConflictError, match=refused):
        await process.rollout.promote(POLICY, new, actor="ada")
    with pytest.raises(ConflictError, match=refused):
        await process.rollout.split(POLICY, {new: 0.2}, actor="ada")
    assert new not in process.models.loaded
    assert process.registry.policy(POLICY).route.revisions == (old,)
    await process.carried_out(process.rollout.split(POLICY, {new: 0.0}, actor="ada"))
    await process.carried_out(process.rollout.split(POLICY, {new: 0.2}, allow_schema_change=True, actor="ada"))
    assert process.registry.policy(POLICY).route.revisions == (old, new)
    await process.carried_out(process.rollout.roll_back(POLICY, actor="ada"))
    await process.carried_out(process.rollout.promote(POLICY, new, Promotion(allow_schema_change=True), actor="ada"))
    assert process.registry.policy(POLICY).route.revisions == (new,)
    # The way back is never barred.
    await process.carried_out(process.rollout.roll_back(POLICY, actor="ada"))
    assert process.registry.policy(POLICY).route.revisions == (old,)


async def test_a_revision_of_another_schema_is_no_shadow(fleet):
    process = fleet.process("a")
    await process.start()
    await serving(fleet, process, "old")
    other = await process.registered(fleet.checkpoint("other", config={"history_steps": 4}))
    with pytest.raises(ConflictError, match=f"revision {other} has schema .* nor be compared"):
        await process.rollout.shadow(POLICY, other, 0.5, actor="ada")
    assert other not in process.models.loaded
    # Ending one is never barred.
    await process.carried_out(process.rollout.shadow(POLICY, other, 0.0, actor="ada"))


async def test_a_schema_that_what_serves_has_only_since_it_was_asked_for_is_seen_when_the_route_changes(fleet):
    process = fleet.process("a")
    await process.start()
    _, new = await serving(fleet, process, "old", "new")
    other = await process.registered(fleet.checkpoint("other", config={"execution_horizon": 4}))
    await process.carried_out(process.rollout.load(POLICY, other, actor="ada"))
    process.models.holds[new] = asyncio.Event()
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    await process.until(lambda: ("load", new) in process.models.calls)
    process.registry.change_route(
        POLICY, lambda now: replace(now.route, shares=((other, 1.0),)), actor="eve", action="promote", detail={}
    )
    process.models.holds[new].set()
    ended = await process.rollout.ended(operation.operation_id)
    assert ended.state is OperationState.FAILED and f"{other}, which serves, has" in ended.error


async def test_shares_that_make_no_whole_are_refused_before_anything_is_loaded(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    for shares in ({new: 1.2}, {new: -0.1}, {old: 0.5, new: 0.2}):
        with pytest.raises(InvalidRequestError, match="shares"):
            await process.rollout.split(POLICY, shares, actor="ada")
    assert new not in process.models.loaded


async def test_a_shadow_is_loaded_and_takes_no_episode(fleet):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    operation = await process.rollout.shadow(POLICY, new, 1.0, actor="ada")
    assert (await process.rollout.ended(operation.operation_id)).state is OperationState.SUCCEEDED
    assert new in process.models.loaded
    assert {process.policies.routed(episode(number)).revision for number in range(100)} == {old}
    operation = await process.rollout.unload(POLICY, new, actor="ada")
    assert (await process.rollout.ended(operation.operation_id)).state is OperationState.SUCCEEDED
    await process.until(lambda: new not in process.models.loaded)
    assert process.registry.policy(POLICY).shadow is None


async def test_a_shadow_is_ended_by_its_own_name_alone(fleet):
    process = fleet.process("a")
    await process.start()
    _, new, other = await serving(fleet, process, "old", "new", "other")
    await process.carried_out(process.rollout.shadow(POLICY, new, 0.5, actor="ada"))
    operation = await process.rollout.shadow(POLICY, other, 0.0, actor="ada")
    assert (await process.rollout.ended(operation.operation_id)).error == f"revision {other} is no shadow, {new} is"
    assert process.registry.policy(POLICY).shadow.revision == new
    await process.carried_out(process.rollout.shadow(POLICY, new, 0.0, actor="ada"))
    assert process.registry.policy(POLICY).shadow is None


async def test_what_takes_traffic_is_not_unloaded(fleet):
    process = fleet.process("a")
    await process.start()
    (old,) = await serving(fleet, process, "old")
    operation = await process.rollout.unload(POLICY, old, actor="ada")
    ended = await process.rollout.ended(operation.operation_id)
    assert "takes traffic" in ended.error
    assert process.policies.routed(episode(1)).revision == old


async def test_a_restart_restores_what_served(fleet):
    process = fleet.process("a")
    await process.start()
    _, new = await serving(fleet, process, "old", "new")
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    await process.rollout.ended(operation.operation_id)
    await process.stop()
    again = fleet.process("b")
    await again.start()
    await again.until(lambda: new in again.models.loaded)
    assert again.policies.routed(episode(1)).revision == new


async def test_an_operation_whose_process_ended_has_failed_and_its_revision_can_be_loaded_again(fleet):
    process = fleet.process("a")
    await process.start()
    _, new = await serving(fleet, process, "old", "new")
    process.models.holds[new] = asyncio.Event()
    operation = await process.rollout.load(POLICY, new, actor="ada")
    await process.until(lambda: ("load", new) in process.models.calls)
    await process.stop()
    again = fleet.process("b")
    await again.start()
    assert again.registry.operation(operation.operation_id).state is OperationState.FAILED
    assert states(again)[new] is S.FAILED
    operation = await again.rollout.promote(POLICY, new, actor="ada")
    assert (await again.rollout.ended(operation.operation_id)).state is OperationState.SUCCEEDED


async def test_a_policy_whose_revision_cannot_be_read_is_not_ready_rather_than_unknown(fleet):
    process = fleet.process("a")
    await process.start()
    await serving(fleet, process, "old")
    await process.stop()
    shutil.rmtree(fleet.store / "old")
    again = fleet.process("b")
    await again.start()
    await again.until(lambda: any(placement.error for placement in again.follower.placements()))
    with pytest.raises(NotReadyError):
        again.policies.routed(episode(1))


async def test_a_registry_that_is_away_stops_no_robot_and_is_followed_again(fleet, tmp_path):
    process = fleet.process("a")
    await process.start()
    old, new = await serving(fleet, process, "old", "new")
    database = tmp_path / "registry.db"
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"registry.db{suffix}").rename(tmp_path / f"away.db{suffix}")
    process.registry.close()
    database.mkdir()
    await process.until(lambda: not process.follower.reachable)
    assert process.policies.routed(episode(1)).revision == old
    database.rmdir()
    for suffix in ("", "-wal", "-shm"):
        if (tmp_path / f"away.db{suffix}").exists():
            (tmp_path / f"away.db{suffix}").rename(tmp_path / f"registry.db{suffix}")
    await process.until(lambda: process.follower.reachable)
    operation = await process.rollout.promote(POLICY, new, actor="ada")
    assert (await process.rollout.ended(operation.operation_id)).state is OperationState.SUCCEEDED
