"""A robot driven by a served policy: python examples/control_loop.py 127.0.0.1:50051 tabletop sawyer

The robot here is a stand-in that needs no hardware: put yours in its place, any object with the four methods of
premotor.client.Robot. It is held, and says so, whenever no action is valid for the moment.
"""

import sys

import numpy as np

from premotor.client import ChunkPlayer, LastPosition, PolicyClient, SyntheticRobot, unmeasured_at_zero
from premotor.client.events import Held, Recovered

address, policy, body = sys.argv[1:]


def connect():
    return PolicyClient(address)


def tell(event):
    if isinstance(event, (Held, Recovered)):
        print(f"step {event.step}: {type(event).__name__}", file=sys.stderr)


with connect() as client:
    embodiment = client.get_policy(policy).embodiment(body)
robot = SyntheticRobot(embodiment, np.random.default_rng(0))
# What is commanded and not measured, such as a gripper's effort, is 0 until the first chunk is there.
hold = LastPosition(first=unmeasured_at_zero(embodiment))

with ChunkPlayer(
    robot, connect, policy=policy, embodiment=body, robot_id="arm-1", hold=hold, image_encoding="raw", observers=[tell]
) as player:
    report = player.play(instruction="open the drawer", episode_id="trial-1", max_steps=160)
print(
    f"{report.counts.num_played} actions of {report.counts.num_chunks} chunks, {report.counts.num_underruns} underruns"
)
