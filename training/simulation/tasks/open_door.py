"""robosuite's Door on the `xarm7` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "xarm7"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.open_door import OPEN_DOOR
    from training.simulation.robosuite.simulation import RobosuiteSimulation

    return RobosuiteSimulation("open-door", BODY, OPEN_DOOR)
