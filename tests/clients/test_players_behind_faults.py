"""The player that robots install, through every fault that a fleet is put through: held, never stale, and back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from premotor.client import BackOff, ChunkPlayer, LastPosition, PolicyClient, RobotObservation
from premotor.client.asker import Transport
from premotor.client.events import (
    ActionPlayed,
    ChunkArrived,
    Held,
    Observed,
    PeriodsSkipped,
    PlayerEvent,
    Reconnected,
    Recovered,
    SwapSeen,
)
from premotor.client.fleet.network import LAN
from premotor.client.fleet.proxy import ShapingProxy
from tests.clients.conftest import ACTION_HORIZON

DEADLINE_S = 15.0
RATE_HZ = 20.0
TRANSPORTS: tuple[Transport, ...] = ("stream", "stream", "unary")


class CountingRobot:
    """A body no two of whose observations are alike: the fake service answers with the state that it was sent."""

    def __init__(self) -> None:
        self.num_looks = 0

    def reset(self) -> None: ...

    def observe(self) -> RobotObservation:
        self.num_looks += 1
        frames = {"front": np.zeros((24, 32, 3), np.uint8)}
        return RobotObservation(images=frames, state=self.state(), capture_time_s=time.monotonic())

    def state(self) -> np.ndarray:
        return np.full(3, 1000 * self.num_looks, np.float32)

    def act(self, action: np.ndarray) -> np.ndarray:
        return action


class Player:
    """One robot, and all that its player said."""

    def __init__(self, number: int, transport: Transport, address: str) -> None:
        self.events: list[PlayerEvent] = []
        self.player = ChunkPlayer(
            CountingRobot(),
            lambda: PolicyClient(address, timeout_s=1.0),
            policy="tabletop",
            robot_id=f"robot-{number}",
            hold=LastPosition(first={"gripper": [0.0]}),
            image_encoding="raw",
            transport=transport,
            observers=[self.events.append],
            back_off=BackOff(initial_s=0.05, max_s=0.2),
            generator=random.Random(number),
            handshake_timeout_s=0.5,
        )

    def start(self) -> None:
        self.player.open()
        self.player.start(instruction="go", episode_id="one")

    def count(self, kind: type) -> int:
        return len(self.of(kind))

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


async def until(found: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def held_and_back(players: list[Player], fault: Callable[[], Awaitable[None]]) -> None:
    """A fault that no plan outlasts: every player holds because of it, and plays again for a while."""
    num_recovered = [player.count(Recovered) for player in players]
    await fault()
    await until(lambda: all(player.count(Recovered) > num for player, num in zip(players, num_recovered, strict=True)))
    await played_on(players)


async def played_on(players: list[Player]) -> None:
    num_played = [player.count(ActionPlayed) for player in players]
    await until(
        lambda: all(player.count(ActionPlayed) > num + 15 for player, num in zip(players, num_played, strict=True))
    )


async def test_no_fault_makes_a_player_play_what_is_stale_or_leaves_it_holding(gateway) -> None:
    gateway.service.policy.embodiments[0].control_rate_hz = RATE_HZ
    proxy = ShapingProxy(LAN, seed=0)
    address = await proxy.listen(gateway.address)
    players = [Player(number, transport, address) for number, transport in enumerate(TRANSPORTS)]

    async def pause() -> None:
        # Longer than the 200 ms that a chunk lasts, for what is left of one may bridge them.
        proxy.cut(0.3, is_partition=False)

    async def restart() -> None:
        held = [player.count(Held) for player in players]
        await asyncio.to_thread(gateway.stop)
        await until(lambda: all(player.count(Held) > num for player, num in zip(players, held, strict=True)))
        await asyncio.to_thread(gateway.start)

    async def partition() -> None:
        # What is on the way when it begins comes late, on a connection that nobody listens to any more.
        num_back = [player.count(Reconnected) for player in players]
        proxy.cut(1.0, is_partition=True)
        await until(lambda: all(player.count(Reconnected) > n for player, n in zip(players, num_back, strict=True)))

    try:
        await asyncio.gather(*(asyncio.to_thread(player.start) for player in players))
        await played_on(players)
        await held_and_back(players, pause)
        proxy.set_loss(0.02)
        await held_and_back(players, partition)
        await held_and_back(players, restart)
        proxy.set_loss(0.0)
        gateway.service.policy.revision = "ffffffffffff"
        await until(lambda: all(player.count(SwapSeen) for player in players))
        await played_on(players)
        for player in players:
            player.player.stop()
        # Nothing ended an episode: `wait` would raise it.
        reports = [await asyncio.to_thread(player.player.wait, DEADLINE_S) for player in players]
    finally:
        await asyncio.gather(*(asyncio.to_thread(player.player.close) for player in players))
        await proxy.close()

    for player, report in zip(players, reports, strict=True):
        assert report.num_reconnections == player.count(Reconnected) >= 2
        assert (report.num_swaps, report.counts.num_underruns > 10) == (1, True)
        check_nothing_stale(player)
        check_every_step_is_said(player)


def check_every_step_is_said(player: Player) -> None:
    """Played, held or skipped, once; and counted as that."""
    commanded = [event.step for event in player.events if isinstance(event, (ActionPlayed, Held))]
    skipped = [event.step - 1 - i for event in player.of(PeriodsSkipped) for i in range(event.num_periods)]
    assert sorted([*commanded, *skipped]) == list(range(len(commanded) + len(skipped)))
    underruns = [event for event in player.of(Held) if event.reason == "underrun"]
    # The last command, which ends the episode, is no step's.
    assert sum(event.num_held_steps for event in player.of(Recovered)) >= len(underruns)


def check_nothing_stale(player: Player) -> None:
    """By the numbers alone, which are those of one observation, and by the clock: neither knows the player's stamps."""
    captured_s = {float(event.state[0]): event.capture_time_s for event in player.of(Observed)}
    held_s = [event.time_s for event in player.of(Held)]
    played = player.of(ActionPlayed)
    assert len(played) > 50 and len(player.of(ChunkArrived)) > 20
    for event in played:
        row = float(event.action[0]) % 1000
        looked_s = captured_s[float(event.action[0]) - row]
        num_held = sum(looked_s < each < event.time_s for each in held_s)
        late_s = event.time_s - looked_s - (row + num_held) / RATE_HZ
        # Looked somewhere in the one step, sent somewhere in the other; and a busy machine's step of slack.
        assert -1 / RATE_HZ < late_s < 2 / RATE_HZ, f"row {row:g} at step {event.step}"
        # What a chunk covers ends when it would have, however long the robot was held.
        assert event.time_s - looked_s < (ACTION_HORIZON + 1) / RATE_HZ
