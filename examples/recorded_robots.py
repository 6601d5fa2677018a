"""Several robots at once, each in a thread, recorded for training:

python examples/recorded_robots.py --address 127.0.0.1:50051 --policy tabletop --embodiment sawyer --robots 4 --out runs

Each robot's directory becomes a LeRobot data set by `python -m training import-run`. Chunks are blended by the server
(real-time chunking) where the policy can do it. The robots are stand-ins that need no hardware.
"""

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from premotor.client import (
    ChunkPlayer,
    EpisodeRecorder,
    LastPosition,
    PolicyClient,
    RealTimeChunkingRule,
    Replace,
    SyntheticRobot,
    unmeasured_at_zero,
)
from premotor.client.events import Failed, Held, PlayerEvent, Reconnected, SwapSeen


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive and record several stand-in robots.")
    for name in ("address", "policy", "embodiment"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--robots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    def connect() -> PolicyClient:
        return PolicyClient(options.address)

    with connect() as client:
        description = client.get_policy(options.policy)
    embodiment = description.embodiment(options.embodiment)
    rule = RealTimeChunkingRule() if description.real_time_chunking_methods else Replace()
    with ExitStack() as stack:
        players = {}
        for number in range(options.robots):
            name = f"robot-{number}"
            recorder = stack.enter_context(EpisodeRecorder(options.out / name))
            players[name] = ChunkPlayer(
                SyntheticRobot(embodiment, np.random.default_rng(number)),
                connect,
                policy=options.policy,
                embodiment=embodiment.name,
                robot_id=name,
                rule=rule,
                hold=LastPosition(first=unmeasured_at_zero(embodiment)),
                image_encoding="raw",
                observe_every_step=True,
                observers=[recorder, partial(tell, name)],
            )
            stack.enter_context(players[name])
            players[name].start(instruction="open the drawer", episode_id=f"{name}-1", max_steps=options.steps)
        for name, player in players.items():
            counts = player.wait(timeout_s=2 * options.steps / embodiment.control_rate_hz + 30).counts
            age_ms = 1000 * counts.mean_age_steps / embodiment.control_rate_hz
            played = f"{name}: {counts.num_played} played at an age of {age_ms:.0f} ms"
            print(f"{played}, {counts.num_underruns} underruns\n", end="")


def tell(name: str, event: PlayerEvent) -> None:
    """One line for what an operator would want to know."""
    if isinstance(event, (Failed, Reconnected, SwapSeen)) or (isinstance(event, Held) and event.reason == "underrun"):
        print(f"{name}, step {event.step}: {type(event).__name__}\n", end="")  # in one piece beside another robot's


if __name__ == "__main__":
    main()
