"""One observation, one chunk: in process, unary, streamed and over openpi's wire, alone and in batches of many bodies.

The shipped policy, for eight bodies of different cameras, states and actions, through Triton. Frames are raw, for
openpi's wire knows no other; JPEGs are in test_service_command.py.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from prometheus_client.parser import text_string_to_metric_families

from policy.policy import Policy
from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_tensor, encode_image, encode_tensor
from service.backend import BackendRequest
from service.bench.served import POLICY, Served, served
from service.ctl.admin_client import AdminAddress, AdminClient
from service.local import to_chunk_request
from service.model_settings import ModelSettings
from service.openpi import ObservationMap
from service.probe import read_probe
from service.revision import Revision, read_revision

# openpi's client connects in a way that newer versions of its own dependency call old.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop"
WAIT_S = 60.0
# Largest |difference| of an action in fp32, for a request that runs alone on both sides: one program with one order of
# sums in each, and what is left is what another process's memory lets its kernels choose.
ALONE = 1e-5
# Largest |difference| / (1 + |action|) when one side runs it in a batch. Matrix kernels are chosen by shape and each
# adds up in an order of its own, which moves a layer's output by some 1e-7 of its size and, measured over all bodies in
# batches of 2, 4 and 8, a chunk by 1e-6. Ten times that, for the kernels of other processors. Another seed, or no
# history, moves a chunk by 0.009 and more: what leaked from one request into another would not hide in it.
IN_A_BATCH = 1e-5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One body's observation on every way, and its chunk in process."""

    asked: BackendRequest
    embodiment: policy_pb2.Embodiment
    # float32 [action_horizon, action_dim]
    expected: np.ndarray

    def message(self, robot: str) -> policy_pb2.PredictChunkRequest:
        """A robot is asked for once, so that no request supersedes another."""
        message = policy_pb2.PredictChunkRequest(
            policy=POLICY,
            embodiment=self.embodiment.name,
            robot_id=f"{robot}-{self.embodiment.name}",
            episode_id="1",
            request_id="1",
            seed=self.asked.seed,
        )
        for camera, frame in zip(self.embodiment.cameras, self.asked.images, strict=True):
            message.observation.images[camera.name].CopyFrom(encode_image(frame))
        message.observation.state.CopyFrom(encode_tensor(self.asked.state))
        message.observation.instruction = self.asked.instruction
        if len(self.asked.history_states):
            message.history.states.CopyFrom(encode_tensor(self.asked.history_states))
            message.history.actions.CopyFrom(encode_tensor(self.asked.history_actions))
        return message

    def openpi_map(self) -> ObservationMap:
        return ObservationMap(
            policy=POLICY,
            embodiment=self.embodiment.name,
            images={camera.name: f"images/{camera.name}" for camera in self.embodiment.cameras},
            state=("joints",),
        )

    def openpi_observation(self) -> dict[str, Any]:
        frames = zip(self.embodiment.cameras, self.asked.images, strict=True)
        return {
            "images": {camera.name: frame for camera, frame in frames},
            "joints": self.asked.state,
            "prompt": self.asked.instruction,
            "seed": self.asked.seed,
        }


@pytest.fixture(scope="module", autouse=True)
def triton_is_here() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton's wheel is for Linux x86-64")


@pytest.fixture(scope="module")
def no_proxy_between() -> Iterator[None]:
    """openpi's client asks the environment for one, also on the way to loopback."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for spelled in (name, name.upper()):
                environment.delenv(spelled, raising=False)
        yield


@pytest.fixture(scope="module")
def revision() -> Revision:
    return read_revision(CHECKPOINT, policy=POLICY)


@pytest.fixture(scope="module")
def with_history(revision: Revision) -> list[Case]:
    """One of each body."""
    policy = Policy.from_checkpoint(revision.directory)
    specs = tuple(policy.embodiments.values())
    cases = []
    for number, case in enumerate(read_probe(revision)):
        # Each has noise of its own: a chunk that went to another robot would show.
        asked = replace(case.request, seed=1000 + number)
        chunk = policy.predict_chunk([to_chunk_request(specs, asked)])[0].numpy()
        embodiment = revision.description.embodiments[asked.embodiment_index]
        cases.append(Case(asked=asked, embodiment=embodiment, expected=chunk))
    assert len({case.embodiment.name for case in cases}) == len(cases) >= 8
    return cases


@pytest.fixture(scope="module")
def cases(revision: Revision, with_history: list[Case]) -> list[Case]:
    """The same without a history, which openpi's robots have not."""
    policy = Policy.from_checkpoint(revision.directory)
    specs = tuple(policy.embodiments.values())
    made = []
    for case in with_history:
        asked = replace(
            case.asked, history_states=case.asked.history_states[:0], history_actions=case.asked.history_actions[:0]
        )
        chunk = policy.predict_chunk([to_chunk_request(specs, asked)])[0].numpy()
        made.append(replace(case, asked=asked, expected=chunk))
    return made


@pytest.fixture(scope="module")
def service(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("openpi") / "map.json"
    path.write_text(json.dumps(cases[0].openpi_map().to_json()))
    # Held back for company, so that batches come about also where the machine sends slowly.
    model = ModelSettings(max_batch_size=8, max_queue_delay_us=50_000)
    with served(CHECKPOINT, model, arguments=("--openpi-port", "0", "--openpi-map", str(path))) as service:
        yield service


@pytest.fixture(scope="module")
def openpi_robots(service: Served, cases: list[Case], no_proxy_between: None) -> Iterator[list[WebsocketClientPolicy]]:
    """One for each case. A robot keeps the map that it found when it connected."""
    with ExitStack() as connected, AdminClient(AdminAddress(url=service.admin_url)) as admin:
        robots = []
        for case in cases:
            admin.put(f"/v1/fleet/policies/{POLICY}/observationMap", case.openpi_map().to_json())
            robot = openpi_robot(service, case.embodiment.name)
            connected.callback(robot._ws.close)
            robots.append(robot)
        yield robots


def openpi_robot(service: Served, embodiment: str) -> WebsocketClientPolicy:
    """A new map is there within a second."""
    host, _, port = service.openpi_url.removeprefix("ws://").partition(":")
    give_up_s = time.monotonic() + WAIT_S
    while True:
        robot = WebsocketClientPolicy(host, int(port))
        if robot.get_server_metadata()["embodiment"] == embodiment:
            return robot
        robot._ws.close()
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def actions(response: policy_pb2.PredictChunkResponse) -> np.ndarray:
    return decode_tensor(response.actions, field="actions", dtype=np.float32, shape=(None, None))


def batches_larger_than(service: Served, size: int) -> int:
    """Requests so far that ran in one."""
    with urllib.request.urlopen(f"{service.admin_url}/metrics", timeout=WAIT_S) as answer:
        text = answer.read().decode()
    buckets = {
        sample.labels["le"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "premotor_batch_requests_bucket" and sample.labels["policy"] == POLICY
    }
    return buckets["+Inf"] - buckets[f"{size}.0"] if buckets else 0


def test_alone_every_way_gives_the_chunk_of_the_policy_in_process_and_all_wires_the_same_bytes(
    service: Served, cases: list[Case], openpi_robots: list[WebsocketClientPolicy]
) -> None:
    before = batches_larger_than(service, 1)
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for case, robot in zip(cases, openpi_robots, strict=True):
            unary = actions(stub.PredictChunk(case.message("unary"), timeout=WAIT_S))
            asked = policy_pb2.StreamChunksRequest(request=case.message("streamed"))
            (answer,) = stub.StreamChunks(iter([asked]), timeout=WAIT_S)
            over_openpi = robot.infer(case.openpi_observation())["actions"]
            np.testing.assert_allclose(unary, case.expected, rtol=0, atol=ALONE)
            assert actions(answer.chunk).tobytes() == unary.tobytes()
            assert over_openpi.tobytes() == unary.tobytes() and over_openpi.shape == unary.shape
    assert batches_larger_than(service, 1) == before


def test_alone_a_history_counts_on_every_wire_that_carries_one(service: Served, with_history: list[Case]) -> None:
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for case in with_history:
            unary = actions(stub.PredictChunk(case.message("unary"), timeout=WAIT_S))
            asked = policy_pb2.StreamChunksRequest(request=case.message("streamed"))
            (answer,) = stub.StreamChunks(iter([asked]), timeout=WAIT_S)
            np.testing.assert_allclose(unary, case.expected, rtol=0, atol=ALONE)
            assert actions(answer.chunk).tobytes() == unary.tobytes()


async def test_in_mixed_batches_of_all_bodies_and_ways_each_gets_the_chunk_it_gets_alone(
    service: Served, cases: list[Case], with_history: list[Case], openpi_robots: list[WebsocketClientPolicy]
) -> None:
    before = batches_larger_than(service, 4)
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)

        async def unary(case: Case, robot: str) -> np.ndarray:
            return actions(await stub.PredictChunk(case.message(robot), timeout=WAIT_S))

        async def streamed(case: Case) -> np.ndarray:
            asked = policy_pb2.StreamChunksRequest(request=case.message("streamed"))
            answers = [answer async for answer in stub.StreamChunks(iter([asked]), timeout=WAIT_S)]
            return actions(answers[0].chunk)

        async def over_openpi(case: Case, robot: WebsocketClientPolicy) -> np.ndarray:
            reply = await asyncio.to_thread(robot.infer, case.openpi_observation())
            return reply["actions"]

        asking = [
            *((case, unary(case, "unary")) for case in cases),
            *((case, unary(case, "remembering")) for case in with_history),
            *((case, streamed(case)) for case in cases),
            *((case, over_openpi(case, robot)) for case, robot in zip(cases, openpi_robots, strict=True)),
        ]
        chunks = await asyncio.gather(*(answer for _, answer in asking))
    for (case, _), chunk in zip(asking, chunks, strict=True):
        assert chunk.shape == case.expected.shape
        worst = float(np.max(np.abs(chunk - case.expected) / (1.0 + np.abs(case.expected))))
        assert worst <= IN_A_BATCH, (case.embodiment.name, worst)
    # Four requests of each body were asked: a batch of more than four has several bodies.
    assert batches_larger_than(service, 4) > before
