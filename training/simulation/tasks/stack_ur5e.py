"""robosuite's Stack on the `ur5e` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "ur5e"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.simulation import RobosuiteSimulation
    from training.simulation.robosuite.stack import STACK

    return RobosuiteSimulation("stack-ur5e", BODY, STACK)
