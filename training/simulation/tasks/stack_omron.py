"""robosuite's Stack on the `pandaomron` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "pandaomron"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.simulation import RobosuiteSimulation
    from training.simulation.robosuite.stack import STACK

    return RobosuiteSimulation("stack-omron", BODY, STACK)
