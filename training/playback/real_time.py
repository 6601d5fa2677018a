"""One cell against the clock: a simulated world that does not wait, a chunk player, and a served policy far away.

Owns the way to the policy, which a proxy makes longer, and what is noted of the player's events. What is added is a
whole number of control periods to every round trip, half of them each way; the policy's own time, the network's and
the rest of the period in which an answer comes are on top, and the delay that came of it is measured.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from policy.embodiment import EmbodimentSpec
from premotor.client import ChunkPlayer, PolicyError
from premotor.client.events import ActionPlayed, ChunkArrived, Failed, Held, PeriodsSkipped, PlayerEvent, SwapSeen
from premotor.client.fleet.network import NetworkProfile
from premotor.client.fleet.proxy import ShapingProxy
from training.evaluate import EvaluationError
from training.gateway_identity import GatewayIdentity
from training.playback.cells import Cell
from training.playback.scenes import PlayedScene, RealTimeCounts, Row
from training.rollout import RULES
from training.seams import SeamMeter
from training.simulation.registry import make_simulation
from training.simulation.robot import RealTime, SimulatedRobot, still

_PROXY_TIMEOUT_S = 10.0
_Value = TypeVar("_Value")


def play_in_real_time(
    cell: Cell, *, address: str, identity: GatewayIdentity, policy: str, revision: str, seeds: Sequence[int]
) -> Row:
    """Every scene once, of one revision. Jumps are those of the actions as executed.

    A step that was held, or went by, ends what a jump is measured from: it is counted instead. Raises EvaluationError
    where no policy answers, or another revision than the one that is measured.
    """
    simulation = make_simulation(cell.task)
    robot = SimulatedRobot(simulation, iter(seeds))
    world = RealTime(robot, simulation.spec)
    scenes = []
    try:
        # The first frame makes a renderer, for which the world would stand still.
        simulation.reset(seeds[0])
        simulation.observe()
        with (
            delayed(address, round_trip_s=cell.delay_steps / simulation.spec.control_rate_hz) as far,
            _player(cell, world, simulation.spec, identity, far, policy) as (player, watch),
        ):
            if player.description.revision != revision:
                raise EvaluationError(f"revision {revision} was being measured, {player.description.revision} serves")
            for seed in seeds:
                watch.begin()
                player.play(
                    instruction=simulation.instruction,
                    episode_id=f"{cell.task}-{seed}-{cell.rule}-{cell.delay_steps}",
                    until=lambda: world.finished,
                )
                scenes.append(watch.scene(seed, world, robot.num_steps))
    except PolicyError as error:
        raise EvaluationError(f"policy {policy!r} at {address}: {error}") from error
    finally:
        simulation.close()
    return Row(cell=cell, scenes=scenes)


@contextmanager
def delayed(address: str, *, round_trip_s: float) -> Iterator[str]:
    """An address on loopback that stands for `address`, host:port, so much further away; also where that is nothing."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="playback-proxy", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, _Value]) -> _Value:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(_PROXY_TIMEOUT_S)

    proxy = ShapingProxy(NetworkProfile(name="playback", delay_s=round_trip_s / 2), seed=0)
    try:
        yield run(proxy.listen(address))
    finally:
        try:
            run(proxy.close())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_PROXY_TIMEOUT_S)
            loop.close()


@contextmanager
def _player(
    cell: Cell, world: RealTime, spec: EmbodimentSpec, identity: GatewayIdentity, address: str, policy: str
) -> Iterator[tuple[ChunkPlayer, PlayWatch]]:
    watch = PlayWatch(spec)
    player = ChunkPlayer(
        world,
        lambda: identity.client(address),
        policy=policy,
        robot_id=f"sim-{cell.task}",
        embodiment=spec.name,
        rule=RULES[cell.rule],
        hold=still(spec),
        observers=(watch,),
    )
    with player:
        yield player, watch


class PlayWatch:
    """An observer of one player; `begin` before every scene."""

    def __init__(self, spec: EmbodimentSpec) -> None:
        self._spec = spec
        self.begin()

    def begin(self) -> None:
        self._meter = SeamMeter(self._spec.action)
        self._playing: int | None = None
        self._delays_steps: list[int] = []
        self._latencies_s: list[float] = []
        self._methods: Counter[str] = Counter()
        self._num_held = self._num_skipped = self._num_failures = 0

    def __call__(self, event: PlayerEvent) -> None:
        if isinstance(event, ActionPlayed):
            self._meter.note(event.action, takes_over=event.for_step != self._playing)
            self._playing = event.for_step
        elif isinstance(event, Held):
            self._num_held += 1
            self._meter.start()
        elif isinstance(event, PeriodsSkipped):
            self._num_skipped += event.num_periods
            self._meter.start()
        elif isinstance(event, ChunkArrived):
            self._delays_steps.append(event.step - event.for_step)
            self._latencies_s.append(event.latency_s)
            self._methods[event.chunk.real_time_chunking_method or "none"] += 1
        elif isinstance(event, Failed):
            self._num_failures += 1
        elif isinstance(event, SwapSeen):
            raise EvaluationError(f"revision {event.previous_revision} was being measured, {event.revision} answers")

    def scene(self, seed: int, world: RealTime, num_steps: int) -> PlayedScene:
        return PlayedScene(
            seed=seed,
            succeeded=world.succeeded,
            num_steps=num_steps,
            latencies_s=tuple(self._latencies_s),
            seams=self._meter.figures(),
            real_time=RealTimeCounts(
                delays_steps=tuple(self._delays_steps),
                num_held_steps=self._num_held,
                num_late_steps=world.num_late_steps,
                num_stalled_steps=world.num_stalled_steps,
                num_skipped_periods=self._num_skipped,
                num_failures=self._num_failures,
                methods=dict(self._methods),
            ),
        )
