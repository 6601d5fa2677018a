"""`python -m service serve` as a process: one answer on every way, and nothing left behind however it ends."""

from __future__ import annotations

import asyncio
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from policy.policy import Policy
from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_tensor
from service.bench.batching import BatchingSettings, format_batching, measure_batching
from service.bench.overhead import OverheadSettings, format_overhead, measure_overhead
from service.bench.requests import chunk_requests, decoded_request
from service.bench.served import POLICY, Served, ServiceStartError, served
from service.local import to_chunk_request
from service.model_settings import ModelSettings
from service.probe import ProbeCase, read_probe
from service.revision import Revision, read_revision

WAIT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def triton_is_here() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton's wheel is for Linux x86-64")


@pytest.fixture(scope="module")
def revision(toy_checkpoint: Path) -> Revision:
    return read_revision(toy_checkpoint, policy=POLICY)


@pytest.fixture(scope="module")
def cases(revision: Revision) -> tuple[ProbeCase, ...]:
    return read_probe(revision)


@pytest.fixture(scope="module")
def service(toy_checkpoint: Path) -> Iterator[Served]:
    with served(toy_checkpoint, ModelSettings()) as service:
        yield service


@dataclass(frozen=True)
class Footprint:
    """What a running service has outside its own process."""

    processes: list[psutil.Process]
    shared_memory_prefix: str
    directory: Path

    @classmethod
    def of(cls, pid: int) -> Footprint:
        processes = psutil.Process(pid).children(recursive=True)
        names = {Path(process.exe()).name: process for process in processes}
        assert {"tritonserver", "triton_python_backend_stub"} <= set(names), names
        command = " ".join(names["tritonserver"].cmdline())
        identity = re.search(r"--id=(\S+)", command)
        repository = re.search(r"--model-repository=(\S+)", command)
        assert identity and repository
        footprint = cls(processes, identity[1], Path(repository[1]).parent)
        assert footprint.regions()
        assert footprint.directory.exists()
        return footprint

    def regions(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.shared_memory_prefix}*"))

    def is_gone(self) -> bool:
        _, alive = psutil.wait_procs(self.processes, timeout=WAIT_S)
        return not alive and not self.regions() and not self.directory.exists()


def actions(response: policy_pb2.PredictChunkResponse) -> np.ndarray:
    return decode_tensor(response.actions, field="actions", dtype=np.float32, shape=(None, None))


def test_one_answer_in_process_by_predict_chunk_and_by_stream(
    service: Served, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    policy = Policy.from_checkpoint(revision.directory)
    specs = tuple(policy.embodiments.values())
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for case in cases:
            message = chunk_requests(revision, case, policy=POLICY)[3]
            asked = to_chunk_request(specs, decoded_request(message, case, revision))
            expected = policy.predict_chunk([asked])[0].numpy()
            unary = stub.PredictChunk(message, timeout=WAIT_S)
            (streamed,) = stub.StreamChunks(iter([policy_pb2.StreamChunksRequest(request=message)]), timeout=WAIT_S)
            for response in (unary, streamed.chunk):
                np.testing.assert_allclose(actions(response), expected, rtol=0, atol=1e-5)
                assert response.revision == revision.revision


def test_the_admin_plane_says_ready(service: Served, revision: Revision) -> None:
    with urllib.request.urlopen(f"{service.admin_url}/readyz", timeout=WAIT_S) as answer:
        readiness = json.load(answer)
    assert readiness["ready"] is True
    assert readiness["policies"][0]["revision"] == revision.revision


async def test_killing_triton_under_load_costs_unavailable_answers_until_service_resumes_by_itself(
    service: Served, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    message = chunk_requests(revision, cases[0], policy=POLICY)[0]
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)

        async def robot() -> set[grpc.StatusCode]:
            """Asks until it has been failed and then answered; returns how its calls ended."""
            ended: list[grpc.StatusCode] = []
            while not (ended and ended[-1] is grpc.StatusCode.OK and len(set(ended)) > 1):
                try:
                    await stub.PredictChunk(message, timeout=5.0)
                    ended.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    ended.append(error.code())
                    await asyncio.sleep(0.05)
            return set(ended)

        robots = [asyncio.create_task(robot()) for _ in range(4)]
        await stub.PredictChunk(message, timeout=WAIT_S)
        footprint = Footprint.of(service.process.pid)
        (victim,) = [process for process in footprint.processes if Path(process.exe()).name == "tritonserver"]
        victim.kill()
        async with asyncio.timeout(WAIT_S):
            ended = await asyncio.gather(*robots)
    assert ended == [{grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}] * 4
    assert not footprint.regions()


async def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(
    toy_checkpoint: Path, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    with served(toy_checkpoint, ModelSettings()) as service:
        footprint = Footprint.of(service.process.pid)
        message = chunk_requests(revision, cases[0], policy=POLICY)[0]
        async with grpc.aio.insecure_channel(service.grpc_address) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            ended: list[grpc.StatusCode] = []

            async def robot() -> None:
                while grpc.StatusCode.UNAVAILABLE not in ended:
                    try:
                        await stub.PredictChunk(message, timeout=WAIT_S)
                        ended.append(grpc.StatusCode.OK)
                    except grpc.aio.AioRpcError as error:
                        ended.append(error.code())

            robots = [asyncio.create_task(robot()) for _ in range(4)]
            await stub.PredictChunk(message, timeout=WAIT_S)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*robots)
        assert await asyncio.to_thread(service.process.wait, WAIT_S) == 0
        # gRPC itself cancels a call that comes while its server closes, before anybody has looked at it.
        assert set(ended) - {grpc.StatusCode.CANCELLED} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert footprint.is_gone()


def test_sigkill_leaves_no_orphan_no_shared_memory_and_no_directory(
    toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever the service makes, it makes here. Not below tmp_path, which is too long for the name of a socket.
    with tempfile.TemporaryDirectory() as scratch:
        monkeypatch.setenv("TMPDIR", scratch)
        with served(toy_checkpoint, ModelSettings()) as service:
            footprint = Footprint.of(service.process.pid)
            assert len(list(Path(scratch).glob("premotor-state-*/registry.db"))) == 1
            service.process.kill()
            service.process.wait(WAIT_S)
            assert footprint.is_gone()
        assert list(Path(scratch).iterdir()) == []


def test_sigterm_while_loading_ends_well_too(toy_checkpoint: Path) -> None:
    command = [
        *(sys.executable, "-m", "service", "serve", "--policy", f"toy={toy_checkpoint}"),
        *("--port", "0", "--admin-port", "0"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # Triton is up, the model is not.
        while '"triton started"' not in (line := process.stderr.readline()):
            assert line, "the service ended before it started Triton"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert output == ""
    assert not psutil.wait_procs(children, timeout=WAIT_S)[1]


def test_a_bench_that_is_told_to_end_takes_its_service_along(toy_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "service", "bench", "overhead", "--policy", str(toy_checkpoint)]
    process = subprocess.Popen([*command, "--backend", "local", "--iterations", "1000000"])
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not (listening := [child for child in psutil.Process(process.pid).children() if child.net_connections()]):
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 128 + signal.SIGTERM
        assert not psutil.wait_procs(listening, timeout=WAIT_S)[1]
    finally:
        process.kill()


def test_a_flipped_byte_ends_the_start_with_the_name_of_the_file(toy_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "flipped"
    shutil.copytree(toy_checkpoint, directory)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with (
        pytest.raises(ServiceStartError, match=r"cannot serve: model\.safetensors has changed"),
        served(directory, ModelSettings()),
    ):
        pytest.fail("a damaged checkpoint was served")


def test_overhead_can_be_measured_on_a_size_that_nobody_has_trained(toy_checkpoint: Path) -> None:
    settings = OverheadSettings(
        checkpoint=toy_checkpoint, size="tiny", iterations=2, backend="local", model=ModelSettings()
    )
    overhead = measure_overhead(settings)
    assert overhead["size"] == "tiny"
    assert overhead["revision"] != read_revision(toy_checkpoint, policy="toy").revision
    assert overhead["max_action_difference"] < 1e-5
    low, high = overhead["median_round_ratio_interval"]
    assert low <= overhead["median_round_ratio"] <= high


def test_the_benches_report_ratios_and_equal_actions(toy_checkpoint: Path) -> None:
    # In process: Triton's start costs seconds, and there are three.
    overhead = measure_overhead(
        OverheadSettings(checkpoint=toy_checkpoint, iterations=5, backend="local", model=ModelSettings())
    )
    assert overhead["overhead_ratio"] == pytest.approx(
        overhead["ways"]["predict_chunk"]["p50_ms"] / overhead["ways"]["bare_forward"]["p50_ms"]
    )
    assert overhead["max_action_difference"] < 1e-5
    assert "overhead_ratio" in format_overhead(json.loads(json.dumps(overhead)))
    settings = BatchingSettings(
        checkpoint=toy_checkpoint, concurrency=4, rounds=1, block_s=0.3, backend="local", model=ModelSettings()
    )
    batching = measure_batching(settings)
    assert batching["batching_ratio"] > 0
    assert "batching_ratio" in format_batching(json.loads(json.dumps(batching)))
