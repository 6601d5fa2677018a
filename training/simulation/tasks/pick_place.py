"""Meta-World's pick-place: bring the puck to the goal, on the `sawyer` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "sawyer"
PACKAGE = "metaworld"


def make() -> Simulation:
    from training.simulation.metaworld import PICK_PLACE, MetaWorldSimulation

    return MetaWorldSimulation("pick-place", PICK_PLACE)
