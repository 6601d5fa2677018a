"""`serve --gateways N` as processes: one port, one Triton, one registry, and no process left behind."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, Served, ServiceStartError, served
from service.ctl.admin_client import AdminAddress, AdminClient
from service.model_settings import ModelSettings
from service.openpi import ObservationMap
from service.openpi.limits import OpenpiLimits
from service.openpi.wire import pack, unpack
from service.probe import read_probe
from service.revision import Revision, read_revision

WAIT_S = 60.0
NUM_GATEWAYS = 3


@pytest.fixture(scope="module", autouse=True)
def triton_is_here() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton's wheel is for Linux x86-64")


@pytest.fixture(scope="module")
def revision(toy_checkpoint: Path) -> Revision:
    return read_revision(toy_checkpoint, policy=POLICY)


@pytest.fixture(scope="module")
def message(revision: Revision) -> policy_pb2.PredictChunkRequest:
    return chunk_requests(revision, read_probe(revision)[0], policy=POLICY)[0]


@pytest.fixture(scope="module")
def store(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With another revision of the same weights: its manifest says another commit."""
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(toy_checkpoint, store / "other")
    manifest = json.loads((store / "other" / "manifest.json").read_text())
    (store / "other" / "manifest.json").write_text(json.dumps(manifest | {"commit": "another"}))
    return store


@pytest.fixture(scope="module")
def observation_map(revision: Revision) -> ObservationMap:
    """For openpi's robots of the first body."""
    body = revision.description.embodiments[0]
    images = {camera.name: camera.name for camera in body.cameras}
    return ObservationMap(policy=POLICY, embodiment=body.name, images=images, state=("state",))


@pytest.fixture(scope="module")
def service(toy_checkpoint: Path, store: Path, observation_map: ObservationMap) -> Iterator[Served]:
    (store / "map.json").write_text(json.dumps(observation_map.to_json()))
    arguments = (
        *("--gateways", str(NUM_GATEWAYS), "--store", str(store), "--drain-s", "5"),
        *("--openpi-port", "0", "--openpi-map", str(store / "map.json")),
    )
    with served(toy_checkpoint, ModelSettings(), arguments=arguments) as service:
        yield service


def ask(service: Served, message: policy_pb2.PredictChunkRequest) -> policy_pb2.PredictChunkResponse:
    """On a connection of its own, which the kernel gives to any of the processes."""
    with grpc.insecure_channel(service.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return policy_pb2_grpc.PolicyServiceStub(channel).PredictChunk(message, timeout=WAIT_S)


def of_robot(message: policy_pb2.PredictChunkRequest, number: int) -> policy_pb2.PredictChunkRequest:
    """The same from a robot of its own: no request supersedes another's."""
    own = policy_pb2.PredictChunkRequest()
    own.CopyFrom(message)
    own.robot_id = own.episode_id = f"robot-{number}"
    return own


def samples(service: Served, name: str) -> dict[str, dict[str, float]]:
    """Process to policy or revision, the last label, to value."""
    with urllib.request.urlopen(f"{service.admin_url}/metrics", timeout=WAIT_S) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                of = sample.labels.get("revision", sample.labels.get("policy", ""))
                found.setdefault(sample.labels["process"], {})[of] = sample.value
    return found


def further_processes(service: Served) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children()
    return [child for child in children if "further-gateway" in child.cmdline()]


def stubs(service: Served) -> list[psutil.Process]:
    """Triton's processes behind models."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    return [child for child in children if child.name().startswith("triton_python")]


def wait_until(true: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def all_counted(service: Served, ask: Callable[[], str]) -> Counter[str]:
    """Asks until each process has answered; how many answers were of which revision, which `ask` returns."""
    before = samples(service, "premotor_chunks_total")
    revisions = Counter[str]()

    def everyone_answered() -> bool:
        revisions.update(ask() for _ in range(8))
        now = samples(service, "premotor_chunks_total")
        return all(
            sum(now.get(process, {}).values()) > sum(before.get(process, {}).values())
            for process in map(str, range(NUM_GATEWAYS))
        )

    wait_until(everyone_answered)
    # Not one answer is missing in the metrics.
    after = samples(service, "premotor_chunks_total")
    counted = sum(sum(of.values()) for of in after.values()) - sum(sum(of.values()) for of in before.values())
    assert counted == revisions.total()
    return revisions


def test_all_processes_answer_on_one_port_and_are_counted(
    service: Served, revision: Revision, message: policy_pb2.PredictChunkRequest
) -> None:
    assert len(further_processes(service)) == NUM_GATEWAYS - 1
    assert samples(service, "premotor_gateway_process_up") == {str(number): {"": 1.0} for number in range(NUM_GATEWAYS)}
    assert set(all_counted(service, lambda: ask(service, message).revision)) == {revision.revision}
    assert len({ask(service, message).actions.data for _ in range(12)}) == 1
    with AdminClient(AdminAddress(url=service.admin_url)) as admin:
        gateways = admin.get("/v1/gateways")["gateways"]
    assert [gateway["address"] for gateway in gateways] == [service.grpc_address] * NUM_GATEWAYS


def test_one_triton_has_one_model_for_all_of_them(service: Served) -> None:
    assert len(stubs(service)) == 1


def test_a_process_that_was_killed_is_out_of_the_fleet_and_another_takes_its_place(
    service: Served, message: policy_pb2.PredictChunkRequest
) -> None:
    victim, *_ = further_processes(service)
    with AdminClient(AdminAddress(url=service.admin_url)) as admin:
        before = {gateway["gateway"] for gateway in admin.get("/v1/gateways")["gateways"]}
        victim.kill()
        wait_until(lambda: len(samples(service, "premotor_requests_in_flight")) < NUM_GATEWAYS)
        wait_until(lambda: sum(of[""] for of in samples(service, "premotor_gateway_process_up").values()) == 3.0)
        after = {gateway["gateway"] for gateway in admin.get("/v1/gateways")["gateways"]}
    assert victim.pid not in {process.pid for process in further_processes(service)}
    assert len(before & after) == NUM_GATEWAYS - 1 and len(after) == NUM_GATEWAYS
    all_counted(service, lambda: ask(service, message).revision)


def test_openpis_robots_are_spread_over_all_processes_as_well(
    service: Served, revision: Revision, observation_map: ObservationMap
) -> None:
    (case, *_) = read_probe(revision)
    frames = dict(zip(observation_map.images, case.request.images, strict=True))
    frame = pack({**frames, "state": case.request.state, "prompt": case.request.instruction})

    def ask_openpi() -> str:
        with connect(service.openpi_url, compression=None, proxy=None) as robot:
            greeting = robot.recv(timeout=WAIT_S)
            assert isinstance(greeting, bytes)
            metadata = unpack(greeting, OpenpiLimits())
            robot.send(frame)
            assert isinstance(robot.recv(timeout=WAIT_S), bytes)
            return metadata["revision"]

    assert set(all_counted(service, ask_openpi)) == {revision.revision}


def test_a_promotion_reaches_all_processes_and_the_model_that_drained_is_gone_from_triton(
    service: Served, revision: Revision, message: policy_pb2.PredictChunkRequest
) -> None:
    with AdminClient(AdminAddress(url=service.admin_url)) as admin:
        path = f"/v1/fleet/policies/{POLICY}"
        new = admin.carry_out(f"{path}/revisions", {"location": "other"})["revision"]
        admin.carry_out(f"{path}/revisions/{new}:promote", {"move_episodes": True})
        assert set(all_counted(service, lambda: ask(service, message).revision)) == {new}
        wait_until(lambda: admin.get(f"{path}/revisions/{revision.revision}")["state"] == "unloaded")
    wait_until(lambda: len(stubs(service)) == 1)
    assert set(all_counted(service, lambda: ask(service, message).revision)) == {new}


async def test_a_model_that_died_costs_unavailable_answers_in_all_processes_until_it_is_back(
    service: Served, message: policy_pb2.PredictChunkRequest
) -> None:
    (stub,) = stubs(service)

    async def robot(number: int) -> set[grpc.StatusCode]:
        """Asks until it has been failed and then answered; returns how its calls ended."""
        ended: list[grpc.StatusCode] = []
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(service.grpc_address, options=options) as channel:
            asks = policy_pb2_grpc.PolicyServiceStub(channel)
            while not (ended and ended[-1] is grpc.StatusCode.OK and len(set(ended)) > 1):
                try:
                    await asks.PredictChunk(of_robot(message, number), timeout=5.0)
                    ended.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    ended.append(error.code())
                    await asyncio.sleep(0.05)
        return set(ended)

    robots = [asyncio.create_task(robot(number)) for number in range(8)]
    await asyncio.to_thread(ask, service, message)
    stub.kill()
    async with asyncio.timeout(WAIT_S):
        ended = await asyncio.gather(*robots)
    assert ended == [{grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}] * 8


def test_a_port_on_which_several_listen_is_taken_for_everybody_else(service: Served, toy_checkpoint: Path) -> None:
    port = service.grpc_address.rpartition(":")[2]
    for number in ("1", "2"):
        arguments = ("--gateways", number, "--port", port)
        with (
            pytest.raises(ServiceStartError, match="cannot listen"),
            served(toy_checkpoint, ModelSettings(), arguments=arguments),
        ):
            pytest.fail("two services listen on one port")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_the_end_of_the_first_process_is_the_end_of_all(
    toy_checkpoint: Path, message: policy_pb2.PredictChunkRequest, end: signal.Signals
) -> None:
    with served(toy_checkpoint, ModelSettings(), arguments=("--gateways", "2")) as service:
        processes = psutil.Process(service.process.pid).children(recursive=True)
        ended: list[grpc.StatusCode] = []

        async def robot(number: int) -> None:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(service.grpc_address, options=options) as channel:
                asks = policy_pb2_grpc.PolicyServiceStub(channel)
                while grpc.StatusCode.UNAVAILABLE not in ended[-4:]:
                    try:
                        await asks.PredictChunk(of_robot(message, number), timeout=WAIT_S)
                        ended.append(grpc.StatusCode.OK)
                    except grpc.aio.AioRpcError as error:
                        ended.append(error.code())

        robots = [asyncio.create_task(robot(number)) for number in range(4)]
        await asyncio.to_thread(ask, service, message)
        service.process.send_signal(end)
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*robots)
        status = await asyncio.to_thread(service.process.wait, WAIT_S)
        assert status == (0 if end is signal.SIGTERM else -end)
        _, alive = await asyncio.to_thread(psutil.wait_procs, processes, WAIT_S)
        assert alive == []
        if end is signal.SIGTERM:
            # What is in flight is answered; gRPC itself cancels a call that comes while its server closes.
            assert set(ended) - {grpc.StatusCode.CANCELLED} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host, _, port = service.grpc_address.rpartition(":")
        free.bind((host, int(port)))
