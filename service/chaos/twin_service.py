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
class TwinSettings:
    """`timeout_s` is how long a robot waits for an answer."""

    checkpoint: Path
    robots: int = 8
    timeout_s: float = 10.0
    backend: BackendKind = "triton"
    model: ModelSettings


@dataclass(frozen=True, kw_only=True)
class TwinService:
    """The first of the twins serves, the second is registered."""

    service: Served
    admin: AdminClient
    twins: Twins
    settings: TwinSettings

    def robots(self) -> Robots:
        return Robots(
            self.service.grpc_address,
            self.twins.questions,
            num_robots=self.settings.robots,
            timeout_s=self.settings.timeout_s,
        )


@contextmanager
def twin_service(settings: TwinSettings) -> Iterator[TwinService]:
    """Raises ServiceStartError, AdminError."""
    from service.chaos.twins import make_twins

    with tempfile.TemporaryDirectory(prefix="premotor-chaos-") as directory:
        store = Path(directory) / "store"
        store.mkdir()
        twins = make_twins(settings.checkpoint, store, policy=POLICY)
        first = store / twins.locations[0]
        with (
            served(first, settings.model, backend=settings.backend, arguments=("--store", str(store))) as service,
            AdminClient(AdminAddress(url=service.admin_url)) as admin,
        ):
            admin.carry_out(f"{POLICY_PATH}/revisions", {"location": twins.locations[1]})
            yield TwinService(service=service, admin=admin, twins=twins, settings=settings)
