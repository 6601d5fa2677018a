"""A download stays for as long as a policy has its revision, and goes from every gateway afterwards."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest


@pytest.fixture
def bucket(kit, tmp_path: Path):
    """The address of a checkpoint."""
    memory = fsspec.filesystem("memory")
    checkpoint = kit.write_checkpoint(tmp_path / "source")
    for path in checkpoint.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/{path.relative_to(checkpoint)}", path.read_bytes())
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


async def test_a_checkpoint_is_read_while_every_thread_of_the_admin_plane_is_busy(fleet, bucket):
    process, loop, goes_on = fleet.process("a"), asyncio.get_running_loop(), threading.Event()
    await process.start()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, goes_on.wait, 20)
    revision = await process.registered(bucket)
    operation = await process.rollout.load("tabletop", revision, actor="ada")
    await process.until(lambda: ("tabletop", revision) in process.follower._held)
    await process.until(lambda: process.follower._held["tabletop", revision].revision is not None)
    assert not busy.done()
    goes_on.set()
    assert (await process.rollout.ended(operation.operation_id)).error == ""


async def test_a_download_goes_with_the_last_policy_that_has_it(fleet, bucket, tmp_path):
    process = fleet.process("a")
    await process.start()
    for policy in ("tabletop", "kitchen"):
        revision = await process.registered(bucket, policy=policy)
    download = tmp_path / "cache" / revision
    await process.carried_out(process.rollout.promote("kitchen", revision, actor="ada"))
    await process.rollout.delete("tabletop", revision, actor="ada")
    await process.until(lambda: not process.follower.fleet.policies["tabletop"].revisions)
    # Long enough for a follower that removes too much.
    await process.carried_out(process.rollout.load("kitchen", revision, actor="ada"))
    assert (download / "model.safetensors").is_file()
    await process.carried_out(process.rollout.retire("kitchen", actor="ada"))
    await process.until(lambda: process.registry.revision("kitchen", revision).state == "unloaded")
    await process.rollout.delete_policy("kitchen", actor="ada")
    await process.until(lambda: not download.exists())


async def test_every_gateway_removes_what_no_policy_has_also_one_that_was_away(fleet, bucket, tmp_path):
    first, second, away = (fleet.process(name, cache=f"cache-{name}") for name in ("a", "b", "c"))
    for process in (first, second, away):
        await process.start()
    revision = await first.registered(bucket)
    await first.carried_out(first.rollout.load("tabletop", revision, actor="ada"))
    downloads = [tmp_path / f"cache-{name}" / revision for name in ("a", "b", "c")]
    assert all(download.is_dir() for download in downloads)
    await away.stop()
    await first.carried_out(first.rollout.unload("tabletop", revision, actor="ada"))
    await first.rollout.delete("tabletop", revision, actor="ada")
    await first.until(lambda: not downloads[0].exists())
    await second.until(lambda: not downloads[1].exists())
    assert downloads[2].is_dir()
    back = fleet.process("d", cache="cache-c")
    await back.start()
    await back.until(lambda: not downloads[2].exists())
