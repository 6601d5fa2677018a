"""Meta-World's button-press on the `sawyer` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "sawyer"
PACKAGE = "metaworld"


def make() -> Simulation:
    from training.simulation.metaworld import BUTTON_PRESS, MetaWorldSimulation

    return MetaWorldSimulation("button-press", BUTTON_PRESS)
