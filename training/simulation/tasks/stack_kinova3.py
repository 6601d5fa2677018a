"""robosuite's Stack on the `kinova3` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "kinova3"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.simulation import RobosuiteSimulation
    from training.simulation.robosuite.stack import STACK

    return RobosuiteSimulation("stack-kinova3", BODY, STACK)
