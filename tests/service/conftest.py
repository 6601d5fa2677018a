"""What the service's tests start from: a whole checkpoint, a backend that does as it is told, requests that fit."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import simplejpeg
from prometheus_client import CollectorRegistry

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import encode_tensor
from service.backend import BackendChunk, BackendRequest
from service.credentials import Caps, Credentials, Scope, TokenCache, TokenRecord
from service.credentials.secret import issue, new_token_id
from service.gateway import GatewayLimits, GatewayServer
from service.policies import ServedPolicies
from service.revision import Revision, read_revision

POLICY = "tabletop"
ACTION_HORIZON = 16
HISTORY_STEPS = 8

SAWYER = EmbodimentSpec(
    name="sawyer",
    cameras=(Camera(name="corner", height=96, width=96),),
    state=(
        Group(name="hand", dim=3, kind=GroupKind.END_EFFECTOR_POSITION, unit="m"),
        Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="1"),
    ),
    action=(
        Group(name="hand", dim=3, kind=GroupKind.END_EFFECTOR_POSITION, unit="m", lower_limit=(-1.0,) * 3),
        Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="1"),
    ),
    control_rate_hz=80,
)
PANDA = EmbodimentSpec(
    name="panda",
    cameras=(Camera(name="front", height=96, width=96), Camera(name="wrist", height=96, width=96)),
    state=(Group(name="arm", dim=9, kind=GroupKind.JOINT_POSITION, unit="rad"),),
    action=(Group(name="arm", dim=8, kind=GroupKind.JOINT_POSITION, unit="rad"),),
    control_rate_hz=20,
)


@dataclass
class FakeBackend:
    """Answers with a function of the request; keeps what it was asked; can be told to wait, to fail or to lie."""

    is_ready: bool = True
    # Requests that it has room for at a time.
    room: int = 16
    failure: Exception | None = None
    make_actions: Callable[[BackendRequest], np.ndarray] | None = None
    # A request whose seed is a key waits for the event.
    holds: dict[int, asyncio.Event] = field(default_factory=dict)
    requests: list[BackendRequest] = field(default_factory=list)
    timeouts_s: list[float] = field(default_factory=list)
    # Notified after each request that reaches the backend.
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    # Set once a request that waits has been cancelled.
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def capacity(self, revision: str) -> int:
        return self.room

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        async with self.arrived:
            self.requests.append(request)
            self.timeouts_s.append(timeout_s)
            self.arrived.notify_all()
        if request.seed in self.holds:
            try:
                await self.holds[request.seed].wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.failure is not None:
            raise self.failure
        make_actions = self.make_actions or expected_actions
        return BackendChunk(actions=make_actions(request), inference_s=0.002, queue_s=0.001)

    async def wait_for_requests(self, count: int) -> None:
        async with asyncio.timeout(5), self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)

    async def ready(self, revision: str) -> bool:
        return self.is_ready

    async def close(self) -> None:
        self.is_ready = False


def expected_actions(request: BackendRequest) -> np.ndarray:
    """float32 [horizon, action_dim]: what a fake backend answers, different for different states and seeds."""
    action_dim = (SAWYER, PANDA)[request.embodiment_index].action_dim
    return np.full((ACTION_HORIZON, action_dim), float(request.state.sum()) + request.seed % 1000, np.float32)


@dataclass(frozen=True)
class Gateway:
    """A running gateway and the ways to reach it."""

    server: GatewayServer
    backend: FakeBackend
    registry: CollectorRegistry
    address: str
    channel: grpc.aio.Channel
    stub: policy_pb2_grpc.PolicyServiceStub

    def count(self, **labels: str) -> float:
        """Requests that ended so far with these labels: of `policy`, `status` and `reason`."""
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "premotor_requests_total" and labels.items() <= sample.labels.items()
        )

    def num_requests(self, state: str) -> float | None:
        """Requests that are "queued", or "in_flight", now; None before the first."""
        return self.registry.get_sample_value(f"premotor_requests_{state}", {"policy": POLICY})

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that only the metrics tell."""
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.005)
        pytest.fail("what was waited for did not come within 5 s")


class ServiceKit:
    """Builds what the service's tests start from."""

    policy = POLICY
    sawyer = SAWYER
    panda = PANDA
    action_horizon = ACTION_HORIZON
    history_steps = HISTORY_STEPS
    backend = FakeBackend
    expected_actions = staticmethod(expected_actions)

    def __init__(self, revision: Revision) -> None:
        self.revision = revision
        self.policies = ServedPolicies.fixed({POLICY: [revision]})

    @staticmethod
    def write_checkpoint(directory: Path, *, config: dict[str, Any] | None = None, variant: str = "history") -> Path:
        """A checkpoint in its format, its weights a few bytes; `config` replaces single fields of config.json."""
        directory.mkdir(parents=True)
        (directory / "tokenizer").mkdir()
        contents = {
            "config.json": json.dumps(
                {
                    "format_version": 1,
                    "size": "tiny",
                    "model": {"width": 8},
                    "action_horizon": ACTION_HORIZON,
                    "execution_horizon": 8,
                    "history_steps": HISTORY_STEPS,
                    "num_inference_steps": 5,
                    "max_inference_steps": 32,
                    "image_size": 96,
                    **(config or {}),
                }
            ).encode(),
            "embodiments.json": json.dumps(
                {
                    "embodiments": [
                        {"spec": spec.to_json(), "digest": spec.digest, "statistics": {}} for spec in (SAWYER, PANDA)
                    ]
                }
            ).encode(),
            "model.safetensors": b"weights",
            "probe.npz": b"probe",
            "tokenizer/tokenizer.json": b"{}",
        }
        for name, content in contents.items():
            (directory / name).write_bytes(content)
        manifest = {
            "format_version": 1,
            "method": "action-prior",
            "variant": variant,
            "size": "tiny",
            "num_parameters": 7,
            "files": {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
                for name, content in contents.items()
            },
            "data": {},
            "training": {},
            "metrics": {},
            "git_commit": "0" * 40,
        }
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return directory

    @staticmethod
    def frame(height: int = 48, width: int = 64) -> np.ndarray:
        """uint8 [height, width, 3]: smooth, so that JPEG keeps it well."""
        y, x = np.mgrid[:height, :width]
        return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)

    @classmethod
    def jpeg(cls, height: int = 48, width: int = 64) -> bytes:
        return simplejpeg.encode_jpeg(cls.frame(height, width), quality=90)

    @classmethod
    def request(cls, *, embodiment: str = "panda", request_id: str = "request-1", seed: int | None = 7) -> Any:
        """A request that fits: panda by JPEG and raw pixels with history, sawyer by JPEG without."""
        request = policy_pb2.PredictChunkRequest(
            policy=POLICY,
            robot_id="robot-1",
            episode_id="episode-1",
            request_id=request_id,
            embodiment=embodiment,
            seed=seed,
        )
        observation = request.observation
        observation.instruction = "lift the cube"
        observation.capture_time.FromMilliseconds(1500)
        if embodiment == "sawyer":
            observation.images["corner"].compressed = cls.jpeg()
            observation.state.CopyFrom(encode_tensor(np.linspace(0, 1, 4, dtype=np.float32)))
            return request
        observation.images["front"].compressed = cls.jpeg()
        observation.images["wrist"].pixels.CopyFrom(encode_tensor(cls.frame(24, 32)))
        observation.state.CopyFrom(encode_tensor(np.linspace(0, 1, 9, dtype=np.float32)))
        request.history.states.CopyFrom(encode_tensor(np.arange(27, dtype=np.float32).reshape(3, 9)))
        request.history.actions.CopyFrom(encode_tensor(np.arange(24, dtype=np.float32).reshape(3, 8)))
        return request

    @asynccontextmanager
    async def serve(
        self,
        *,
        limits: GatewayLimits | None = None,
        backend: FakeBackend | None = None,
        draw_seed: Callable[[], int] = lambda: 11,
        credentials: Callable[[CollectorRegistry], Credentials] | None = None,
    ) -> AsyncIterator[Gateway]:
        """A gateway on a free loopback port, with an open channel to it."""
        backend, registry = backend or FakeBackend(), CollectorRegistry()
        server = GatewayServer(
            policies=self.policies,
            backend=backend,
            metrics_registry=registry,
            credentials=credentials(registry) if credentials else None,
            limits=limits,
            draw_seed=draw_seed,
        )
        address = f"127.0.0.1:{await server.start()}"
        try:
            # A channel of its own for each test: channels to one address share a connection otherwise.
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                stub = policy_pb2_grpc.PolicyServiceStub(channel)
                yield Gateway(
                    server=server, backend=backend, registry=registry, address=address, channel=channel, stub=stub
                )
        finally:
            await server.stop(0)


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> ServiceKit:
    directory = ServiceKit.write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tabletop")
    return ServiceKit(read_revision(directory, policy=POLICY))


class TokenDesk:
    """Hands out tokens as a registry would, without one. Its clocks stand still until they are moved."""

    def __init__(self) -> None:
        self.cache = TokenCache()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.clock_s = 0.0
        self._records: dict[str, TokenRecord] = {}

    def tokens(self) -> list[TokenRecord]:
        return list(self._records.values())

    def credentials(self, registry: CollectorRegistry) -> Credentials:
        return Credentials(
            metrics_registry=registry, tokens=self.cache, now=lambda: self.now, clock_s=lambda: self.clock_s
        )

    def give(
        self,
        *scopes: str,
        policies: tuple[str, ...] = (),
        expires_at: datetime | None = None,
        caps: Caps | None = None,
        name: str = "somebody",
    ) -> str:
        issued = issue(new_token_id())
        self._keep(
            TokenRecord(
                token_id=issued.token_id,
                name=name,
                scopes=frozenset(Scope(scope) for scope in scopes),
                policies=policies,
                expires_at=expires_at,
                caps=caps or Caps(),
                secret_sha256=issued.sha256,
                previous_sha256="",
                previous_until=None,
                created_at=self.now,
                revoked_at=None,
            )
        )
        return issued.token

    def revoke(self, token: str) -> None:
        self._keep(replace(self._record(token), revoked_at=self.now))

    def rotate(self, token: str, *, grace_s: float) -> str:
        record, issued = self._record(token), issue(self._record(token).token_id)
        self._keep(
            replace(
                record,
                secret_sha256=issued.sha256,
                previous_sha256=record.secret_sha256,
                previous_until=self.now + timedelta(seconds=grace_s),
            )
        )
        return issued.token

    def _record(self, token: str) -> TokenRecord:
        return self._records[token.split("_")[1]]

    def _keep(self, record: TokenRecord) -> None:
        self._records[record.token_id] = record
        self.cache.refresh(self)


@pytest.fixture
def desk() -> TokenDesk:
    return TokenDesk()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A PostgreSQL server of our own for the session; each call makes an empty database and returns its URL."""
    (binaries,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    # The server refuses to run as root, and its owner must be able to reach its files.
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    directory = Path(tempfile.mkdtemp(prefix="premotor-postgres-"))
    if as_owner:
        shutil.chown(directory, "postgres")
    data, options = directory / "data", f"-k {directory} -c listen_addresses='' -c fsync=off"

    def run(*command: object) -> None:
        subprocess.run([*as_owner, *map(str, command)], check=True, capture_output=True, timeout=60, cwd=directory)

    run(binaries / "initdb", "-D", data, "-A", "trust", "-U", "premotor")
    run(binaries / "pg_ctl", "-D", data, "-w", "-o", options, "-l", directory / "log", "start")
    names = (f"fleet_{number}" for number in itertools.count())

    def make_database() -> str:
        name = next(names)
        run(binaries / "createdb", "-h", directory, "-U", "premotor", name)
        return f"postgresql://premotor@/{name}?host={directory}"

    try:
        yield make_database
    finally:
        run(binaries / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(directory, ignore_errors=True)
