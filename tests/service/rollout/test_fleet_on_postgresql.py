"""Two gateways on one PostgreSQL: a promotion is seen by both within a second, and a lost database stops no robot."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

import pytest
from sqlalchemy import create_engine, text

from service.episodes import Episode
from service.rollout import FollowerSettings, RolloutSettings

POLICY = "tabletop"
EPISODE = Episode(policy=POLICY, robot_id="robot", episode_id="1")


@pytest.fixture
async def gateways(postgres_fleet):
    """As they are shipped: what they promise hangs on how often they look."""
    shipped = {"follower_settings": FollowerSettings(), **asdict(RolloutSettings())}
    found = [postgres_fleet.process(name, **shipped) for name in ("a", "b")]
    for process in found:
        await process.start()
    return found


async def test_two_gateways_see_a_promotion_within_a_second_of_each_other(postgres_fleet, gateways):
    first, _ = gateways
    revisions = [await first.registered(postgres_fleet.checkpoint(name, variant=name)) for name in ("one", "two")]
    await first.carried_out(first.rollout.promote(POLICY, revisions[0], actor="ada"))
    gaps_s = []
    for number in range(4):
        asked, new = gateways[number % 2], revisions[(number + 1) % 2]
        changed_s: dict[str, float] = {}

        async def watch(process, new=new, changed_s=changed_s) -> None:
            while process.policies.serving(POLICY).revision != new:  # noqa: ASYNC110  # no event says so, on purpose
                await asyncio.sleep(0.002)
            changed_s[process.follower.gateway_id] = time.monotonic()

        watching = asyncio.gather(*(watch(process) for process in gateways))
        await asked.carried_out(asked.rollout.promote(POLICY, new, actor="ada"))
        await asyncio.wait_for(watching, 10)
        gaps_s.append(abs(changed_s["a"] - changed_s["b"]))
    assert max(gaps_s) < 1.0, gaps_s


async def test_a_lost_connection_stops_no_robot_and_is_made_again(postgres_fleet, gateways):
    first, second = gateways
    one = await first.registered(postgres_fleet.checkpoint("one", variant="one"))
    two = await first.registered(postgres_fleet.checkpoint("two", variant="two"))
    await first.carried_out(first.rollout.promote(POLICY, one, actor="ada"))
    engine = create_engine(postgres_fleet.url.replace("postgresql://", "postgresql+psycopg://"))
    for _ in range(5):
        with engine.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
        for process in gateways:
            assert process.policies.routed(EPISODE).revision == one
        await asyncio.sleep(0)
    engine.dispose()
    await second.carried_out(second.rollout.promote(POLICY, two, actor="ada"))
    assert {process.policies.serving(POLICY).revision for process in gateways} == {two}


async def test_gateways_that_start_at_once_migrate_once(postgres):
    from service.registry import Registry, open_database

    url = postgres()
    opened = await asyncio.gather(*(asyncio.to_thread(open_database, url) for _ in range(4)))
    assert {Registry(engine).generation() for engine in opened} == {0}
    for engine in opened:
        engine.dispose()
