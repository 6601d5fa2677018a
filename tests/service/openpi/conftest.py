"""What the tests of openpi's wire start from: a body in a robot's keys, a server beside a gateway, plain sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.asyncio.client import ClientConnection, connect

from premotor.v1 import policy_pb2
from premotor.wire import encode_image, encode_tensor
from service.errors import AuthenticationError, OverloadedError
from service.openpi import ObservationMap, OpenpiServer

INSTRUCTION = "lift the cube"


@dataclass
class Robot:
    """A connection and the codec of openpi's own client."""

    socket: ClientConnection
    metadata: dict[str, Any]

    async def ask(self, message: Any) -> Any:
        """The reply: a text as it is, a frame unpacked."""
        await self.socket.send(msgpack_numpy.packb(message))
        return await self.hear()

    async def hear(self) -> Any:
        reply = await self.socket.recv()
        return reply if isinstance(reply, str) else msgpack_numpy.unpackb(reply)


@dataclass
class Doorman:
    """An authenticator with one key, which can be revoked and has caps; keeps what it was shown."""

    key: str | None = None
    max_connections: int = 100
    # That the key is for; empty for all.
    key_policies: tuple[str, ...] = ()
    holder: str = "somebody"
    shown: list[tuple[list[str], str]] = field(default_factory=list)
    num_connected: int = 0
    # Set once a robot that was let in has gone.
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def policies(self, authorization: Sequence[str]) -> Sequence[str]:
        self._check(authorization)
        return self.key_policies

    @contextmanager
    def connection(self, authorization: Sequence[str], policy: str) -> Iterator[None]:
        self.shown.append((list(authorization), policy))
        self._check(authorization)
        if self.num_connected >= self.max_connections:
            raise OverloadedError("the key is in use")
        self.num_connected += 1
        try:
            yield
        finally:
            self.num_connected -= 1
            self.left.set()

    @contextmanager
    def request(self, authorization: Sequence[str], policy: str) -> Iterator[str]:
        self._check(authorization)
        yield self.holder

    def still_counts(self, authorization: Sequence[str]) -> None:
        self._check(authorization)

    def _check(self, authorization: Sequence[str]) -> None:
        if self.key is not None and list(authorization) != [f"Api-Key {self.key}"]:
            raise AuthenticationError("the credential is not a valid one")


class OpenpiKit:
    """Panda, as a DROID robot names what it has."""

    doorman = Doorman
    panda_map = ObservationMap(
        policy="tabletop",
        embodiment="panda",
        images={"front": "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left"},
        state=("observation/joint_position", "observation/gripper_position"),
    )

    @staticmethod
    def observation(**more: Any) -> dict[str, Any]:
        return {
            "observation/exterior_image_1_left": np.full((24, 32, 3), 7, np.uint8),
            "observation/wrist_image_left": np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3),
            "observation/joint_position": np.linspace(0, 1, 7),
            "observation/cartesian_position": np.zeros(6),
            "observation/gripper_position": np.array([0.25, 0.5]),
            "prompt": INSTRUCTION,
            **more,
        }

    @classmethod
    def request(cls, *, seed: int) -> policy_pb2.PredictChunkRequest:
        """What a robot that speaks gRPC would send for `observation()`."""
        observation = cls.observation()
        request = policy_pb2.PredictChunkRequest(
            policy="tabletop", embodiment="panda", robot_id="grpc", episode_id="1", request_id="1", seed=seed
        )
        for camera, key in cls.panda_map.images.items():
            request.observation.images[camera].CopyFrom(encode_image(observation[key]))
        state = np.concatenate([observation[key] for key in cls.panda_map.state]).astype(np.float32)
        request.observation.state.CopyFrom(encode_tensor(state))
        request.observation.instruction = INSTRUCTION
        return request

    def server(self, kit: Any, gateway: Any, **options: Any) -> OpenpiServer:
        return OpenpiServer(
            **{
                "policies": kit.policies,
                "backend": gateway.backend,
                "answerer": gateway.server.answerer,
                "gateway_limits": gateway.server.limits,
                "observation_map": self.panda_map,
                **options,
            }
        )

    @asynccontextmanager
    async def serve(self, kit: Any, gateway: Any, **options: Any) -> AsyncIterator[int]:
        """The port of a server on loopback, beside a gateway of `kit`."""
        server = self.server(kit, gateway, **options)
        try:
            yield await server.start()
        finally:
            await server.stop()

    @asynccontextmanager
    async def robot(self, port: int, path: str = "/", *, scheme: str = "ws", **options: Any) -> AsyncIterator[Robot]:
        options = {"compression": None, "max_size": None, "proxy": None, **options}
        async with connect(f"{scheme}://127.0.0.1:{port}{path}", **options) as socket:
            yield Robot(socket, msgpack_numpy.unpackb(await socket.recv()))


@pytest.fixture(scope="session")
def openpi() -> OpenpiKit:
    return OpenpiKit()


@pytest.fixture(autouse=True)
def no_proxy_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """openpi's client asks the environment for one, also on the way to loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
