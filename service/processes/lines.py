"""What a service's first process and its further ones say to one another: lines of JSON on stdin and stdout.

Owns the configuration of a further process and the names of questions and events. The first line on stdin is the
configuration, each later one a question; the end of stdin ends the process. A pipe and no command line: a registry's
URL may hold a password, and its end tells a process that the first one is gone, however that happened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.credentials import TlsFiles
from service.model_settings import ModelSettings
from service.openpi import ObservationMap
from service.rollout import Fence

# Questions, each answered by a line with the question's id.
ALIVE = "alive"
METRICS = "metrics"
# Events, which nobody asked for.
READY = "ready"
MODEL_DEAD = "model dead"
# A line of metrics is long.
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class FurtherGatewayConfig:
    """Everything that a further process goes by. Paths may be relative, for all have one working directory."""

    # 1 for the first of the further ones.
    process: int
    gateway_id: str
    host: str
    port: int
    openpi_port: int | None
    observation_map: ObservationMap | None
    # Whom openpi's robots ask that do not say; empty for the one that served first.
    openpi_policy: str
    registry: str
    # Where downloads are kept, which checkpoints may be registered from, and what the operator named on top.
    cache: Path
    store: Path | None
    named: tuple[Path, ...]
    fence: Fence
    model: ModelSettings
    triton_address: str
    triton_control_address: str
    triton_repository: Path
    # Whose the models are that the first process loads.
    triton_owner: str
    triton_shares_memory: bool
    tls: TlsFiles | None
    # Of the collector that gets traces; empty for none.
    otlp_endpoint: str
    drain_s: float
    # Of an operator's load, of silence after which a revision is probed, of episodes in progress on a revision that
    # drains, and of silence that ends an episode.
    load_timeout_s: float
    idle_probe_s: float
    drain_timeout_s: float
    episode_idle_s: float
    # As logging numbers levels.
    log_level: int

    def to_json(self) -> str:
        plain = asdict(self) | {
            "observation_map": None if self.observation_map is None else self.observation_map.to_json()
        }
        return json.dumps(plain, default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> FurtherGatewayConfig:
        """Raises ValueError or TypeError for anything but a line of `to_json`."""
        plain: dict[str, Any] = json.loads(line)
        observation_map, tls, store = plain["observation_map"], plain["tls"], plain["store"]
        read = {
            "observation_map": None if observation_map is None else ObservationMap.from_json(observation_map),
            "cache": Path(plain["cache"]),
            "store": None if store is None else Path(store),
            "named": tuple(map(Path, plain["named"])),
            "model": ModelSettings(**plain["model"]),
            "triton_repository": Path(plain["triton_repository"]),
            "tls": None if tls is None else _tls_files(tls),
        }
        return cls(**(plain | read))


def _tls_files(plain: Mapping[str, str | None]) -> TlsFiles:
    certificate, key, client_ca = plain["certificate"], plain["key"], plain["client_ca"]
    assert certificate is not None and key is not None
    return TlsFiles(certificate=Path(certificate), key=Path(key), client_ca=Path(client_ca) if client_ca else None)
