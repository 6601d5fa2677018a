"""What a comparison is told, and the commands of what is compared.

Owns the names of the ways, their commands and the bounds. Does not own the measuring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from premotor.client.fleet.settings import EndpointKind
from premotor.client.images import IMAGE_ENCODINGS, ImageEncoding

Way = Literal["bare", "premotor-unary", "premotor", "openpi", "lerobot", "triton"]
WAYS: tuple[Way, ...] = get_args(Way)
# Those that robots ask over a network.
SERVED_WAYS: tuple[EndpointKind, ...] = ("premotor-unary", "premotor", "openpi", "lerobot", "triton")
# Those that a ratio is taken to.
PEERS: tuple[EndpointKind, ...] = ("openpi", "lerobot", "triton")
# What is installed for those that have an environment of their own.
PEER_PACKAGES: dict[EndpointKind, str] = {"openpi": "policy-websocket", "lerobot": "lerobot"}
POLICY = "measured"
# Fewer tell too little of chance to be published.
PUBLISHED_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """One comparison. `source` is a checkout of premotor, whose service and peers' servers are started."""

    checkpoint: Path
    size: Literal["", "tiny", "small"] = ""
    embodiment: str
    source: Path
    python: str
    peers: Path
    ways: tuple[Way, ...] = WAYS
    num_robots: int = 16
    # What all robots ask for, over what the bare forward does one question after the other: a server like it is full.
    load: float = 1.5
    # Of each robot, in the load's place.
    rate_hz: float | None = None
    # None plays a chunk in two periods: asked again half-way.
    control_rate_hz: float | None = None
    cameras: tuple[int, int, int] | None = None
    # Of premotor's own wire; the others carry raw frames only.
    image_encoding: ImageEncoding = "raw"
    rounds: int = 8
    block_s: float = 4.0
    # Numbers of robots tried, ascending, until one is not supplied, and then those between it and the one before, by
    # halves; none tries nothing.
    robot_counts: tuple[int, ...] = (4, 8, 16, 24)
    capacity_rounds: int = 8
    threads: int = 1
    dtype: Literal["fp32", "bf16"] = "fp32"
    max_batch_size: int = 8
    backend: Literal["triton", "local"] = "triton"
    client_cpus: tuple[int, ...] = ()
    server_cpus: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.source / "service" / "__main__.py").is_file():
            raise ValueError(f"{self.source} is no checkout of premotor: it has no service/__main__.py")
        for name, least in (
            ("num_robots", 1),
            ("rounds", 2),
            ("capacity_rounds", 1),
            ("threads", 1),
            ("max_batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for name in ("load", "rate_hz", "control_rate_hz", "block_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, expected more than 0")
        for name, known in (
            ("size", ("", "tiny", "small")),
            ("dtype", ("fp32", "bf16")),
            ("backend", ("triton", "local")),
            ("image_encoding", IMAGE_ENCODINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(repr, known))}")
        if "bare" not in self.ways or not set(self.ways) <= set(WAYS) or len(set(self.ways)) < len(self.ways):
            raise ValueError(f"ways {list(self.ways)} came, expected bare and others of {', '.join(WAYS)}")
        if list(self.robot_counts) != sorted(set(self.robot_counts)) or min(self.robot_counts, default=1) < 1:
            raise ValueError(f"robot counts {list(self.robot_counts)} came, expected ascending numbers from 1 on")

    @property
    def most_robots(self) -> int:
        return max(self.num_robots, *self.robot_counts, 1)

    def sees_other_pixels(self, way: str) -> bool:
        """Than the bare forward does: then its actions are others as well, and how far off they are is all there is."""
        return way.startswith("premotor") and self.image_encoding == "jpeg"

    def service_command(self, checkpoint: Path) -> tuple[str, ...]:
        return (
            *(self.python, "-m", "service", "--log-level", "warning", "serve"),
            *("--policy", f"{POLICY}={checkpoint}", "--port", "0", "--admin-port", "0", "--backend", self.backend),
            # What nobody asks would be probed in the others' blocks.
            *("--idle-probe-s", "3600"),
            *("--threads", str(self.threads), "--dtype", self.dtype, "--max-batch-size", str(self.max_batch_size)),
        )

    def peer_command(self, way: Way, checkpoint: Path, height: int, width: int) -> tuple[str, ...]:
        """Of `bare`, openpi, lerobot or triton. Frames of 0 by 0 are of the embodiment's own sizes."""
        pythons = {"openpi": f"{self.peers}/openpi/bin/python", "lerobot": self.lerobot_python}
        module = "service.bench.peers.bare" if way == "bare" else f"service.bench.peers.{way}_server"
        command = (pythons.get(way, self.python), "-W", "ignore", "-m", module, "--checkpoint", str(checkpoint))
        command += ("--threads", str(self.threads), "--dtype", self.dtype)
        if way == "triton":
            return (*command, "--max-batch-size", str(self.max_batch_size))
        command += ("--embodiment", self.embodiment)
        if way == "lerobot":
            return (*command, "--robots", str(self.most_robots), "--height", str(height), "--width", str(width))
        return command

    @property
    def lerobot_python(self) -> str:
        return f"{self.peers}/lerobot/bin/python"

    def untrained_command(self, directory: Path) -> tuple[str, ...]:
        module = "service.bench.peers.untrained_checkpoint"
        return (
            *(self.python, "-m", module, "--checkpoint", str(self.checkpoint)),
            *("--size", self.size, "--out", str(directory)),
        )
