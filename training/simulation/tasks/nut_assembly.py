"""robosuite's NutAssemblySquare on the `panda` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "panda"
PACKAGE = "robosuite"


def make() -> Simulation:
    from training.simulation.robosuite.nut_assembly import NUT_ASSEMBLY
    from training.simulation.robosuite.simulation import RobosuiteSimulation

    return RobosuiteSimulation("nut-assembly", BODY, NUT_ASSEMBLY)
