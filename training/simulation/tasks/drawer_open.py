"""Meta-World's drawer-open on the `sawyer` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "sawyer"
PACKAGE = "metaworld"


def make() -> Simulation:
    from training.simulation.metaworld import DRAWER_OPEN, MetaWorldSimulation

    return MetaWorldSimulation("drawer-open", DRAWER_OPEN)
