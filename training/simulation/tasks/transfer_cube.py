"""gym-aloha's TransferCube on the `aloha` body."""

from __future__ import annotations

from training.simulation.task import Simulation

BODY = "aloha"
PACKAGE = "gym-aloha"


def make() -> Simulation:
    from training.simulation.aloha import AlohaSimulation

    return AlohaSimulation("transfer-cube")
