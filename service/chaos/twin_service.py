"""A service that serves one of two revisions which answer differently, the other beside it, and robots that know both.

Owns setting it up. Does not own what happens to it (swap.py, canary.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.bench.served import POLICY, Served, served
from service.chaos.robots import Robots
from service.ctl.admin_client import AdminAddress, AdminClient
from service.model_settings import BackendKind, ModelSettings

if TYPE_CHECKING:
    from service.chaos.twins import Twins

POLICY_PATH = f"/v1/fleet/policies/{POLICY}"


@dataclass(frozen=True, kw_only=True)
class TwinService:
    """The first of the twins serves, the second is registered."""

    service: Served
    admin: AdminClient
    twins: Twins
    num_robots: int
    timeout_s: float

    def robots(self) -> Robots:
        return Robots(
            self.service.grpc_address, self.twins.questions, num_robots=self.num_robots, timeout_s=self.timeout_s
        )


@contextmanager
def twin_service(
    checkpoint: Path, model: ModelSettings, *, backend: BackendKind, num_robots: int, timeout_s: float
) -> Iterator[TwinService]:
    """Raises ServiceStartError, AdminError."""
    from service.chaos.twins import make_twins

    with tempfile.TemporaryDirectory(prefix="premotor-chaos-") as directory:
        store = Path(directory) / "store"
        store.mkdir()
        twins = make_twins(checkpoint, store, policy=POLICY)
        first = store / twins.locations[0]
        with (
            served(first, model, backend=backend, arguments=("--store", str(store))) as service,
            AdminClient(AdminAddress(url=service.admin_url)) as admin,
        ):
            admin.carry_out(f"{POLICY_PATH}/revisions", {"location": twins.locations[1]})
            yield TwinService(service=service, admin=admin, twins=twins, num_robots=num_robots, timeout_s=timeout_s)
