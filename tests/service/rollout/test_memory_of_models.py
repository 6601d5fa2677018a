"""What the models take of the memory is counted once for each that the backend holds, until it holds it no more."""

from __future__ import annotations

import asyncio

from service.memory import needed_bytes
from service.revision import RevisionError
from service.rollout import FollowerSettings, LoadingSettings

# Of one of these checkpoints, whose weights are seven bytes.
MODEL_BYTES = needed_bytes(7, own_process=False)


async def started(fleet, *, num_models: int, name: str = "a", refused: str = ""):
    """A process with room for so many models, of which one is `refused`."""
    loading = LoadingSettings(memory_budget_bytes=num_models * MODEL_BYTES)
    process = fleet.process(name, follower_settings=FollowerSettings(interval_s=0.05, loading=loading))
    process.models.refusals[refused] = RevisionError("probe.npz: a chunk is off by 3")
    await process.start()
    return process


async def loaded(process, policy: str, revision: str) -> str:
    """Why it was not, or nothing."""
    operation = await process.rollout.load(policy, revision, actor="ada")
    return (await process.rollout.ended(operation.operation_id)).error


async def test_a_model_that_two_policies_have_is_counted_for_as_long_as_either_has_it(fleet):
    process = await started(fleet, num_models=1)
    both, other = fleet.checkpoint("both", variant="both"), fleet.checkpoint("other", variant="other")
    for policy in ("tabletop", "kitchen"):
        shared = await process.registered(both, policy=policy)
        assert await loaded(process, policy, shared) == ""
    new = await process.registered(other)
    await process.carried_out(process.rollout.unload("tabletop", shared, actor="ada"))
    await process.until(lambda: ("tabletop", shared) not in process.follower._held)
    assert "a second copy takes about" in await loaded(process, "tabletop", new)
    await process.carried_out(process.rollout.unload("kitchen", shared, actor="ada"))
    await process.until(lambda: ("unload", shared) in process.models.calls)
    assert await loaded(process, "tabletop", new) == ""


async def test_a_model_that_failed_to_load_and_is_to_be_tried_again_takes_nothing(fleet):
    before = await started(fleet, num_models=1)
    served = await before.registered(fleet.checkpoint("served", variant="served"))
    await before.carried_out(before.rollout.promote("tabletop", served, actor="ada"))
    await before.stop()
    process = await started(fleet, num_models=1, name="b", refused=served)
    await process.until(lambda: "off by 3" in process.follower.missing().get("tabletop", ""))
    other = await process.registered(fleet.checkpoint("other", variant="other"), policy="kitchen")
    assert await loaded(process, "kitchen", other) == ""


async def test_what_goes_has_gone_before_what_comes_is_loaded(fleet):
    process = await started(fleet, num_models=2)
    models = process.models
    revisions = {
        policy: await process.registered(fleet.checkpoint(policy, variant=policy), policy=policy)
        for policy in ("old", "another", "new")
    }
    old, another, new = revisions.values()
    assert await loaded(process, "old", old) == ""
    # Until it has been loaded, neither of the others has its turn.
    models.holds[another] = asyncio.Event()
    operations = [await process.rollout.load("another", another, actor="ada")]
    await process.until(lambda: ("load", another) in models.calls)
    operations.append(await process.rollout.load("new", new, actor="ada"))
    await process.until(lambda: ("new", new) in process.follower._held)
    await process.until(lambda: process.follower._held["new", new].revision is not None)
    await process.carried_out(process.rollout.unload("old", old, actor="ada"))
    await process.until(lambda: ("old", old) not in process.follower._held)
    models.holds[another].set()
    for operation in operations:
        assert (await process.rollout.ended(operation.operation_id)).error == ""
    assert models.calls.index(("unload", old)) < models.calls.index(("load", new))
    assert models.loaded == {another, new}
