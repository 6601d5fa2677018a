"""robosuite's PickPlaceCan on the `iiwa` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "iiwa"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.pick_can import PICK_CAN
    from training.simulation.robosuite.simulation import RobosuiteSimulation

    return RobosuiteSimulation("pick-can-iiwa", BODY, PICK_CAN)
