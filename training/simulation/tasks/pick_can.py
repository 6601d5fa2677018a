"""robosuite's PickPlaceCan on the `panda` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "panda"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.pick_can import PICK_CAN
    from training.simulation.robosuite.simulation import RobosuiteSimulation

    return RobosuiteSimulation("pick-can", BODY, PICK_CAN)
