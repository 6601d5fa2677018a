"""robosuite's Lift on the `panda` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "panda"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.lift import LIFT
    from training.simulation.robosuite.simulation import RobosuiteSimulation

    return RobosuiteSimulation("lift", BODY, LIFT)
