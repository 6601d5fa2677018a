"""Meta-World's assembly on the `sawyer` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "sawyer"
PACKAGE = "metaworld"


def make() -> Simulation:
    from training.simulation.metaworld import ASSEMBLY, MetaWorldSimulation

    return MetaWorldSimulation("assembly", ASSEMBLY)
