"""What a fleet run is told, checked where it is built.

Owns names, defaults and bounds. Does not own the command line (command.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from premotor.client.description import Embodiment, PolicyDescription
from premotor.client.fleet.network import PROFILES
from premotor.client.identity import TlsOptions, token_metadata
from premotor.client.images import IMAGE_ENCODINGS, ImageEncoding

EndpointKind = Literal["premotor", "premotor-unary", "openpi", "lerobot", "triton"]
ENDPOINT_KINDS: tuple[EndpointKind, ...] = get_args(EndpointKind)
# What each wire can carry at once, how a robot that means to ask more is treated, and when it gives up.
IN_FLIGHT = {
    "premotor": "32 on the robot's stream; a newer question supersedes one that waits at the gateway, which knows "
    "when an answer would be too late",
    "premotor-unary": "32 calls; a newer question supersedes one that waits at the gateway, which knows when an answer "
    "would be too late",
    "openpi": "1, for answers have no ids; the newest question waits for its turn, older ones are dropped unsent; "
    "what is out is waited for",
    "lerobot": "1, for the server answers whoever asks; the newest question waits, older ones are dropped unsent; "
    "what is out is waited for",
    "triton": "32, each on a connection of its own; nothing supersedes anything; what is out is waited for",
}
# Wires that carry a deadline. On the others giving up would save the server nothing: their own clients wait.
_TELLS_THE_DEADLINE: tuple[EndpointKind, ...] = ("premotor", "premotor-unary")
# For an answer that may come late, so that a server that is gone does not hold a run for ever.
PATIENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """One run.

    `addresses` is one server for all robots, or several that robots take in turn. A robot asks `rate_hz` times a
    second, `jitter` of a period early or late. What happens in the first `settle_s` is asked and answered but not
    counted. `description` and `embodiment` say what is asked; frames have the sizes of the embodiment's cameras.
    """

    endpoint: EndpointKind
    addresses: tuple[str, ...]
    description: PolicyDescription
    embodiment: Embodiment
    num_robots: int = 16
    rate_hz: float = 2.0
    jitter: float = 0.1
    duration_s: float = 60.0
    settle_s: float = 2.0
    control_rate_hz: float = 50.0
    # None takes how long a chunk lasts where the wire tells the server so: a later answer holds no action that could
    # still be played. Elsewhere a robot waits, and a late answer is a missed deadline.
    timeout_s: float | None = None
    open_timeout_s: float = 20.0
    network: str = "none"
    image_encoding: ImageEncoding = "raw"
    with_history: bool = True
    num_inference_steps: int | None = None
    # Of the noise a chunk starts from; None takes another for every question.
    policy_seed: int | None = None
    processes: int = 1
    # CPUs of all processes of this run; empty leaves it to the system.
    pin: tuple[int, ...] = ()
    seed: int = 0
    token: str = field(default="", repr=False)
    tls: TlsOptions | None = field(default=None, repr=False)
    allow_token_without_tls: bool = False
    # LeRobot's own Python, and the model of a Triton, for the endpoints of these names.
    lerobot_python: str = ""
    triton_model: str = ""

    def __post_init__(self) -> None:
        for name, least in (("num_robots", 1), ("processes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for name in ("rate_hz", "duration_s", "control_rate_hz", "open_timeout_s", "answer_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.settle_s < self.duration_s:
            raise ValueError(f"settle_s is {self.settle_s}, expected 0 to less than duration_s, {self.duration_s}")
        if not 0 <= self.jitter < 0.5:
            raise ValueError(f"jitter is {self.jitter}, expected 0 to less than 0.5 of a period")
        for name, value, known in (
            ("endpoint", self.endpoint, ENDPOINT_KINDS),
            ("network", self.network, tuple(PROFILES)),
            ("image_encoding", self.image_encoding, IMAGE_ENCODINGS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if not self.addresses:
            raise ValueError("no address came")
        if self.endpoint == "lerobot" and len(self.addresses) < self.num_robots:
            raise ValueError(
                f"{len(self.addresses)} addresses came for {self.num_robots} robots: a PolicyServer serves one robot"
            )
        if self.endpoint in ("openpi", "lerobot", "triton") and self.image_encoding != "raw":
            raise ValueError(f"the wire of {self.endpoint} carries raw frames only, {self.image_encoding!r} came")
        self._check_identity()
        if self.endpoint == "triton" and not self.triton_model:
            raise ValueError("the endpoint triton needs the name of a model")

    def _check_identity(self) -> None:
        """What is shown to the servers, and that nobody on the way reads it. A proxy may stand for an address later."""
        if self.tls is not None and self.endpoint in ("lerobot", "triton"):
            raise ValueError(f"the wire of {self.endpoint} is not encrypted: leave TLS away")
        if self.tls is not None and self.tls.certificate is not None and self.endpoint == "openpi":
            raise ValueError("the wire of openpi shows no certificate of its robots: leave theirs away")
        if self.token and self.endpoint in ("lerobot", "triton"):
            raise ValueError(f"the wire of {self.endpoint} carries no token: leave it away")
        for address in self.addresses:
            token_metadata(self.token, address, tls=self.tls, allow_token_without_tls=self.allow_token_without_tls)

    @property
    def period_s(self) -> float:
        return 1.0 / self.rate_hz

    @property
    def chunk_s(self) -> float:
        """How long a chunk lasts."""
        return self.description.action_horizon / self.control_rate_hz

    @property
    def answer_timeout_s(self) -> float:
        if self.timeout_s is not None:
            return self.timeout_s
        return self.chunk_s if self.endpoint in _TELLS_THE_DEADLINE else max(PATIENCE_S, self.chunk_s)

    @property
    def deadline_s(self) -> float:
        """After a question's intended time: when the chunk of the question before it, had it come at once, runs out.

        Where a chunk does not last a period there is no such time, and the deadline is the end of the chunk itself.
        """
        slack_s = self.chunk_s - self.period_s
        return slack_s if slack_s > 0 else self.chunk_s

    @property
    def most_supplied_share(self) -> float:
        """Of the control steps, when every chunk comes at once."""
        return min(1.0, self.chunk_s / self.period_s)


def parse_duration_s(text: str) -> float:
    """`90`, `90s`, `250ms` or `2m` in seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)(ms|s|m)?", text)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"{text!r} came, expected a time such as 60s, 250ms or 2m")
    return float(found[1]) * {"ms": 1e-3, "s": 1.0, "m": 60.0, None: 1.0}[found[2]]


def parse_cameras(text: str) -> tuple[int, int, int]:
    """`2x224` or `2x480x640`: how many, and the height and width of their frames. Raises ValueError."""
    found = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", text)
    if found is None or "0" in (found[1], found[2], found[3]):
        raise ValueError(f"{text!r} came, expected COUNTxSIZE or COUNTxHEIGHTxWIDTH, such as 2x224")
    height = int(found[2])
    return int(found[1]), height, int(found[3] or height)
