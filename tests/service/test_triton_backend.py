"""The backend's states, against a Triton that does as it is told: a real server on loopback without a model."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from service.backend import (
    BackendDeadlineError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
    InstructionRefusedError,
)
from service.model_settings import ModelSettings
from service.probe import ProbeCase, read_probe
from service.revision import Revision, RevisionError, read_revision
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.models import AnothersModels, TritonModels
from service.triton.repository import model_name, remove_model
from service.triton.server import ExternalTriton, TritonStartError
from service.triton.tensors import CHUNK, ELSEWHERE, REQUEST, UNREADABLE

QUICK = SupervisionSettings(
    load_timeout_s=5.0, probe_timeout_s=5.0, heartbeat_interval_s=60.0, first_backoff_s=0.01, last_backoff_s=0.02
)
DEAD_STUB = (500, "Stub process 'premotor_0_0' is not healthy.")


@dataclass
class FakeTriton:
    """Answers the probe with what was recorded; can be told to lie, to fail, to hold its answers."""

    cases: tuple[ProbeCase, ...]
    offset: float = 0.0
    # Status and message.
    load_error: tuple[grpc.StatusCode, str] | None = None
    infer_error: tuple[int, str] | None = None
    # Loading mends what inference fails with.
    load_mends: bool = True
    # By model: what inference fails with whatever is loaded, and loads that never end.
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    # Models that were unloaded since they were loaded, or lost with the Triton before this one.
    missing: set[str] = field(default_factory=set)
    is_live: bool = True
    # What it says when it is asked whether it has a model.
    has_model: bool = True
    # Set once that was asked in vain.
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    # What it asks of who loads models, "KEY=VALUE".
    control_key: str = ""
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    num_inferences: int = 0
    # Requests that lie in memory, which this one cannot read.
    num_unreadable: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.holding.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its other end closes it."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ") for line in lines if line)
                body = await reader.readexactly(int(headers["content-length"]))
                json_length = int(headers.get("inference-header-content-length", len(body)))
                status, content, header = await self._answer(
                    request.split(" ")[1], body[:json_length], body[json_length:]
                )
                writer.write(
                    f"HTTP/1.1 {status} -\r\nContent-Length: {len(content)}\r\n{header}\r\n".encode() + content
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, description: bytes, content: bytes) -> tuple[int, bytes, str]:
        if path.endswith("/infer"):
            return await self._infer(path.split("/")[3], json.loads(description)["inputs"], content)
        if path.endswith("/live") and not self.is_live:
            return 400, b"", ""
        if path.endswith("/ready") and not self.has_model:
            self.was_asked.set()
            return 400, b"", ""
        return 200, b"", ""

    def handlers(self) -> grpc.GenericRpcHandler:
        """Of its gRPC service, which loads and unloads."""
        methods = {"RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload}
        return grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService",
            {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()},
        )

    async def _load(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if self.control_key and not self._is_shown_by(context):
            # As Triton says it.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted")
        model = request[2:].decode()
        async with self.arrived:
            self.loads.append(model)
            self.arrived.notify_all()
        if model in self.hung:
            await asyncio.Event().wait()
        if self.load_error is not None:
            await context.abort(*self.load_error)
        if self.load_mends:
            self.infer_error = None
        self.missing.discard(model)
        return b""

    def _is_shown_by(self, context: grpc.aio.ServicerContext) -> bool:
        key, _, value = self.control_key.partition("=")
        return (f"triton-grpc-protocol-{key}", value) in tuple(map(tuple, context.invocation_metadata() or ()))

    async def _unload(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.unloads.append(request[2:].decode())
        self.missing.add(self.unloads[-1])
        return b""

    async def _infer(self, model: str, inputs: list[dict[str, Any]], content: bytes) -> tuple[int, bytes, str]:
        async with self.arrived:
            self.num_inferences += 1
            self.arrived.notify_all()
        await self.holding.wait()
        if model in self.missing:
            return self._failure((404, f"Request for unknown model: '{model}' has no available versions"))
        if (error := self.broken.get(model) or self.infer_error) is not None:
            return self._failure(error)
        assert [tensor["name"] for tensor in inputs] == [REQUEST]
        embodiment_index, seed = np.frombuffer(content, np.int64, count=2)
        if embodiment_index == ELSEWHERE:
            self.num_unreadable += 1
            return self._failure((500, f"RuntimeError: {UNREADABLE}: [Errno 13] Permission denied"))
        expected = next(
            case.expected
            for case in self.cases
            if (case.request.embodiment_index, case.request.seed) == (embodiment_index, seed)
        )
        chunk = np.array([1_000, 1, *expected.shape]).tobytes() + (expected + np.float32(self.offset)).tobytes()
        output = {
            "name": CHUNK,
            "datatype": "UINT8",
            "shape": [1, len(chunk)],
            "parameters": {"binary_data_size": len(chunk)},
        }
        description = json.dumps({"outputs": [output]}).encode()
        return 200, description + chunk, f"Inference-Header-Content-Length: {len(description)}\r\n"

    @staticmethod
    def _failure(error: tuple[int, str]) -> tuple[int, bytes, str]:
        return error[0], json.dumps({"error": error[1]}).encode(), ""

    async def wait_for_inferences(self, count: int) -> None:
        async with asyncio.timeout(5), self.arrived:
            await self.arrived.wait_for(lambda: self.num_inferences >= count)

    async def wait_for_loads(self, count: int, model: str | None = None) -> None:
        """Of one model, or of all."""
        async with asyncio.timeout(5), self.arrived:
            await self.arrived.wait_for(lambda: len([each for each in self.loads if model in (each, None)]) >= count)


class FakeProcess:
    """A TritonServer whose process is a server in this loop: it can be killed, and its starts can fail."""

    def __init__(self, triton: FakeTriton, repository: Path) -> None:
        self.triton = triton
        self.repository = repository
        self.address = ""
        self.control_address = ""
        self.control_key = ""
        self.owner = ""
        self.shares_memory = False
        self.num_starts = 0
        self.num_failing_starts = 0
        self.ended: list[str] = []
        self.abandoned = asyncio.Event()
        self._lost = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._control: grpc.aio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.num_starts += 1
        if self.num_failing_starts > 0:
            self.num_failing_starts -= 1
            raise TritonStartError("told to fail")
        self._lost.clear()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._control = grpc.aio.server()
        self._control.add_generic_rpc_handlers((self.triton.handlers(),))
        self.control_address = f"127.0.0.1:{self._control.add_insecure_port('127.0.0.1:0')}"
        await self._control.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self.triton.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def wait_lost(self) -> str:
        await self._lost.wait()
        return "killed"

    async def kill(self) -> None:
        await self.stop()
        self._lost.set()

    async def end_model(self, model: str) -> None:
        self.ended.append(model)

    async def abandon(self) -> None:
        self.abandoned.set()
        await self.kill()

    async def stop(self) -> None:
        if self._server is not None:
            # Before anything waits: nobody may connect to what is about to end.
            self._server.close()
            for connection in tuple(self._connections):
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
        if self._control is not None:
            await self._control.stop(0)


@pytest.fixture(scope="module")
def revision(toy_checkpoint: Path) -> Revision:
    return read_revision(toy_checkpoint, policy="tabletop")


@pytest.fixture(scope="module")
def other(revision: Revision) -> Revision:
    """Another revision to the backend, which answers the same probe."""
    return replace(revision, revision="0123456789ab")


@pytest.fixture
def process(revision: Revision, tmp_path: Path) -> FakeProcess:
    # One case per body and seed: that is what the fake tells them apart by.
    cases = {(case.request.embodiment_index, case.request.seed): case for case in reversed(read_probe(revision))}
    return FakeProcess(FakeTriton(tuple(cases.values())), tmp_path)


@asynccontextmanager
async def started(
    process: Any,
    revision: Revision | None = None,
    supervision: SupervisionSettings = QUICK,
    models: TritonModels | None = None,
    **settings: Any,
) -> AsyncIterator[TritonBackend]:
    backend = TritonBackend(process, ModelSettings(**settings), supervision, models=models)
    try:
        await backend.start()
        if revision is not None:
            await backend.load(revision)
        yield backend
    finally:
        await backend.close()


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def become_ready(backend: TritonBackend, revision: Revision) -> None:
    for _ in range(1000):
        if await backend.ready(revision.revision):
            return
        await asyncio.sleep(0.005)
    pytest.fail("the revision did not become ready within 5 s")


async def become_refused(backend: TritonBackend, revision: Revision, request: BackendRequest) -> None:
    for _ in range(1000):
        with pytest.raises(BackendUnavailableError) as unavailable:
            await backend.predict(revision.revision, request, timeout_s=5)
        if "is refused" in str(unavailable.value):
            return
        await asyncio.sleep(0.005)
    pytest.fail("the revision was not refused within 5 s")


async def test_a_revision_is_ready_once_its_probe_has_passed(process: FakeProcess, revision: Revision) -> None:
    async with started(process) as backend:
        process.triton.holding.clear()
        loading = asyncio.create_task(backend.load(revision))
        await process.triton.wait_for_inferences(1)
        assert not await backend.ready(revision.revision)
        case = process.triton.cases[0]
        with pytest.raises(BackendUnavailableError, match="loading"):
            await backend.predict(revision.revision, case.request, timeout_s=1)
        process.triton.holding.set()
        await loading
        assert await backend.ready(revision.revision)
        chunk = await backend.predict(revision.revision, case.request, timeout_s=5)
        np.testing.assert_array_equal(chunk.actions, case.expected)
        assert chunk.inference_s == 0.000001
        assert chunk.queue_s > 0


async def test_processes_that_cannot_read_this_ones_memory_are_sent_all_of_it(
    process: FakeProcess, revision: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.triton.shared_requests.FEWEST_BYTES", 0)
    process.shares_memory = True
    async with started(process, revision) as backend:
        assert process.triton.num_unreadable == 1
        case = process.triton.cases[0]
        chunk = await backend.predict(revision.revision, case.request, timeout_s=5)
    np.testing.assert_array_equal(chunk.actions, case.expected)
    assert process.triton.num_unreadable == 1


async def test_wrong_values_with_status_ok_are_refused_naming_the_probe(
    process: FakeProcess, revision: Revision
) -> None:
    process.triton.offset = 0.1
    async with started(process) as backend:
        with pytest.raises(RevisionError, match=r"probe.npz: a chunk is off by .* \(through Triton\)"):
            await backend.load(revision)
        assert not await backend.ready(revision.revision)
        assert list(process.repository.iterdir()) == []


async def test_what_the_policy_says_about_its_checkpoint_comes_through(
    process: FakeProcess, revision: Revision
) -> None:
    details = (
        "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: CheckpointError: model.safetensors: "
        "weight x holds NaN or infinity\n\nAt:\n  /somewhere/checkpoint.py(1): load\n;\n"
    )
    process.triton.load_error = (grpc.StatusCode.INTERNAL, details)
    async with started(process) as backend:
        with pytest.raises(RevisionError, match=r"^model.safetensors: weight x holds NaN or infinity$"):
            await backend.load(revision)


async def test_a_dead_model_is_loaded_again_while_triton_lives(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision) as backend:
        process.triton.infer_error = DEAD_STUB
        request = process.triton.cases[0].request
        with pytest.raises(BackendUnavailableError):
            await backend.predict(revision.revision, request, timeout_s=5)
        assert not await backend.ready(revision.revision)
        await become_ready(backend, revision)
        await backend.predict(revision.revision, request, timeout_s=5)
        assert (len(process.triton.loads), process.num_starts) == (2, 1)
        # It may only have stood still, and would keep what it holds.
        assert process.ended == [process.triton.loads[0]]


async def test_a_model_that_stays_dead_costs_triton_its_life(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision) as backend:
        process.triton.infer_error, process.triton.load_mends = DEAD_STUB, False
        with pytest.raises(BackendUnavailableError):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
        await asyncio.wait_for(process.abandoned.wait(), timeout=5)
        process.triton.infer_error = None
        await become_ready(backend, revision)
        assert process.num_starts > 1


async def test_a_lost_triton_is_started_again_with_its_revisions(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision) as backend:
        process.triton.holding.clear()
        request = process.triton.cases[0].request
        before = process.triton.num_inferences
        asking = [asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5)) for _ in range(3)]
        await process.triton.wait_for_inferences(before + 3)
        process.num_failing_starts = 2
        await process.kill()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(answer, BackendUnavailableError) for answer in answers)
        process.triton.holding.set()
        await become_ready(backend, revision)
        await backend.predict(revision.revision, request, timeout_s=5)
        assert process.num_starts == 4


async def test_a_checkpoint_that_is_refused_after_a_restart_leaves_triton_running(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision) as backend:
        process.triton.load_error = (
            grpc.StatusCode.INTERNAL,
            "Internal: CheckpointError: model.safetensors has changed",
        )
        await process.kill()
        await become_refused(backend, revision, process.triton.cases[0].request)
        assert not await backend.ready(revision.revision)
        assert (len(process.triton.loads), process.num_starts) == (3, 2)


async def test_there_is_room_for_two_batches_and_whatever_comes_goes_to_triton_at_once(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision, max_batch_size=2) as backend:
        assert backend.capacity(revision.revision) == 4
        process.triton.holding.clear()
        request = process.triton.cases[0].request
        before = process.triton.num_inferences
        inside = [asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5)) for _ in range(6)]
        await process.triton.wait_for_inferences(before + 6)
        process.triton.holding.set()
        await asyncio.gather(*inside)


async def test_of_several_gateways_each_has_room_for_one_batch(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision, max_batch_size=2, num_gateways=3) as backend:
        assert backend.capacity(revision.revision) == 2


async def test_without_batching_one_runs_and_one_is_next(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision, batching=False) as backend:
        assert backend.capacity(revision.revision) == 2


async def test_an_unloaded_revision_is_unavailable_and_no_death_to_recover_from(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision) as backend:
        process.triton.holding.clear()
        before, request = process.triton.num_inferences, process.triton.cases[0].request
        inside = asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5))
        await process.triton.wait_for_inferences(before + 1)
        await backend.unload(revision.revision)
        with pytest.raises(BackendUnavailableError, match="not loaded"):
            await backend.predict(revision.revision, request, timeout_s=5)
        process.triton.infer_error = DEAD_STUB
        process.triton.holding.set()
        with pytest.raises(BackendUnavailableError) as ended:
            await inside
        assert ended.value.retry_after_s == QUICK.retry_after_s
        assert len(process.triton.loads) == 1
        assert not process.abandoned.is_set()


async def test_an_answer_that_does_not_come_is_a_deadline_within_the_time_given(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision) as backend:
        process.triton.holding.clear()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        with pytest.raises(BackendDeadlineError):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=0.1)
        assert loop.time() - started_s < 1.0
        assert await backend.ready(revision.revision)
        process.triton.holding.set()


async def test_a_failure_of_the_model_is_not_taken_for_its_death(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision) as backend:
        process.triton.infer_error = (500, "InvalidObservationError: steps")
        with pytest.raises(BackendFailedError, match="InvalidObservationError"):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
        assert await backend.ready(revision.revision)


async def test_an_instruction_that_the_model_refuses_is_the_robots_fault(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision) as backend:
        process.triton.infer_error = (500, "InstructionTooLongError: an instruction of 129 tokens came")
        with pytest.raises(
            InstructionRefusedError, match=r"^observation\.instruction: an instruction of 129 tokens came$"
        ):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)


async def test_a_model_that_dies_while_nobody_asks_is_noticed(process: FakeProcess, revision: Revision) -> None:
    supervision = SupervisionSettings(heartbeat_interval_s=0.02)
    async with started(process, revision, supervision) as backend:
        process.triton.infer_error = DEAD_STUB
        await process.triton.wait_for_loads(2)
        await become_ready(backend, revision)


async def test_a_triton_that_answers_its_heartbeat_wrongly_is_given_up(
    process: FakeProcess, revision: Revision
) -> None:
    supervision = SupervisionSettings(heartbeat_interval_s=0.02)
    async with started(process, revision, supervision) as backend:
        process.triton.infer_error = (500, "out of its mind")
        await asyncio.wait_for(process.abandoned.wait(), timeout=5)
        await become_ready(backend, revision)


async def test_closing_ends_calls_in_progress_as_unavailable(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision) as backend:
        process.triton.holding.clear()
        before = process.triton.num_inferences
        asking = [
            asyncio.create_task(backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5))
            for _ in range(4)
        ]
        await process.triton.wait_for_inferences(before + 4)
        await backend.close()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(answer) for answer in answers] == [BackendUnavailableError] * 4
    assert process.triton.unloads == process.triton.loads


async def test_a_cancelled_call_is_cancelled_and_the_others_are_answered(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision) as backend:
        process.triton.holding.clear()
        before = process.triton.num_inferences
        request = process.triton.cases[0].request
        asking = [asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5)) for _ in range(3)]
        await process.triton.wait_for_inferences(before + 3)
        asking[0].cancel()
        with suppress(asyncio.CancelledError):
            await asking[0]
        assert asking[0].cancelled()
        process.triton.holding.set()
        await asyncio.gather(*asking[1:])


async def test_a_triton_of_somebody_else_is_waited_for_used_and_left_running(
    process: FakeProcess, revision: Revision, tmp_path: Path
) -> None:
    await process.start()
    external = ExternalTriton(
        process.address, process.control_address, tmp_path, startup_timeout_s=5, poll_interval_s=0.01
    )
    async with started(external, revision) as backend:
        await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
    assert process.triton.unloads == [f"premotor_{revision.revision}_0"]
    assert names_in(tmp_path) == ["premotor-0.lock"]
    lost = asyncio.create_task(external.wait_lost())
    await process.kill()
    assert "does not answer" in await asyncio.wait_for(lost, timeout=5)


async def test_a_triton_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    external = ExternalTriton("127.0.0.1:1", "127.0.0.1:1", tmp_path, startup_timeout_s=0.1)
    with pytest.raises(TritonStartError, match=r"127.0.0.1:1 did not answer within 0.1 s"):
        await external.start()


async def test_a_triton_on_unix_sockets_is_looked_up_under_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: looked_up.append(host) or [])
    # As a further gateway process is told them.
    sockets = f"unix:{tmp_path}/http.sock", f"unix:{tmp_path}/grpc.sock:1"
    with pytest.raises(TritonStartError, match="did not answer"):
        await ExternalTriton(*sockets, tmp_path, startup_timeout_s=0.1).start()
    assert looked_up == []


async def test_anothers_model_is_waited_for_probed_and_neither_loaded_nor_unloaded(
    process: FakeProcess, revision: Revision
) -> None:
    process.triton.has_model = False
    async with started(process, models=AnothersModels(lambda dead: None)) as backend:
        loading = asyncio.create_task(backend.load(revision))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(loading), 0.3)
        assert process.triton.num_inferences == 0
        process.triton.has_model = True
        await asyncio.wait_for(loading, 5)
        assert await backend.ready(revision.revision)
        await backend.unload(revision.revision)
        assert not await backend.ready(revision.revision)
    assert (process.triton.loads, process.triton.unloads) == ([], [])
    assert list(process.repository.iterdir()) == []


async def test_anothers_model_that_died_is_reported_once_and_used_again_when_it_is_back(
    process: FakeProcess, revision: Revision
) -> None:
    reported: list[str] = []
    async with started(process, revision, models=AnothersModels(reported.append)) as backend:
        process.triton.infer_error = DEAD_STUB
        with pytest.raises(BackendUnavailableError):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
        await process.triton.wait_for_inferences(process.triton.num_inferences + 3)
        assert not await backend.ready(revision.revision)
        process.triton.infer_error = None
        await become_ready(backend, revision)
    assert reported == [revision.revision]
    assert process.triton.loads == []


async def test_anothers_model_that_does_not_come_is_no_verdict_on_the_checkpoint(
    process: FakeProcess, revision: Revision
) -> None:
    process.triton.has_model = False
    quick = replace(QUICK, load_timeout_s=0.2)
    async with started(process, supervision=quick, models=AnothersModels(lambda dead: None)) as backend:
        with pytest.raises(BackendUnavailableError, match=r"first process within 0\.2 s"):
            await backend.load(revision)


async def test_waiting_for_anothers_model_ends_with_the_triton_it_waits_in(
    process: FakeProcess, revision: Revision
) -> None:
    process.triton.has_model = False
    async with started(process, models=AnothersModels(lambda dead: None)) as backend:
        loading = asyncio.create_task(backend.load(revision))
        await asyncio.wait_for(process.triton.was_asked.wait(), 5)
        process.num_failing_starts = 1000
        await process.kill()
        with pytest.raises(BackendUnavailableError, match="Triton was lost"):
            await asyncio.wait_for(loading, 5)


async def test_a_model_that_others_found_dead_is_loaded_again_without_waiting_for_a_heartbeat(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision) as backend:
        process.triton.infer_error = DEAD_STUB
        backend.look_at(revision.revision)
        await process.triton.wait_for_loads(2)
        await become_ready(backend, revision)


async def test_a_triton_of_somebody_else_that_is_given_up_counts_as_lost_until_it_is_started_with_again(
    process: FakeProcess, tmp_path: Path
) -> None:
    await process.start()
    external = ExternalTriton(process.address, process.control_address, tmp_path, poll_interval_s=0.01)
    await external.abandon()
    assert "answers wrongly" in await asyncio.wait_for(external.wait_lost(), 5)
    await external.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(external.wait_lost(), 0.1)
    await process.stop()


@pytest.mark.parametrize("status", [404, 503])
async def test_a_model_that_triton_no_longer_has_is_loaded_again(
    process: FakeProcess, revision: Revision, status: int
) -> None:
    async with started(process, revision) as backend:
        process.triton.infer_error = (status, "Request for unknown model: has no available versions")
        request = process.triton.cases[0].request
        with pytest.raises(BackendUnavailableError):
            await backend.predict(revision.revision, request, timeout_s=5)
        assert not await backend.ready(revision.revision)
        await become_ready(backend, revision)
        await backend.predict(revision.revision, request, timeout_s=5)
        assert (len(process.triton.loads), process.num_starts) == (2, 1)


async def test_a_model_that_was_unloaded_while_nobody_asked_is_noticed(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision, replace(QUICK, heartbeat_interval_s=0.02)) as backend:
        process.triton.missing.add(model_name(revision.revision))
        await process.triton.wait_for_loads(2)
        await become_ready(backend, revision)
        assert not process.abandoned.is_set()


async def test_services_that_share_a_triton_do_not_lose_their_models_with_the_one_that_stops(
    process: FakeProcess, revision: Revision, tmp_path: Path
) -> None:
    await process.start()

    def service() -> ExternalTriton:
        return ExternalTriton(process.address, process.control_address, tmp_path, poll_interval_s=0.01)

    request = process.triton.cases[0].request
    async with started(service(), revision) as new:
        async with started(service(), revision) as old:
            for backend in (old, new):
                await backend.predict(revision.revision, request, timeout_s=5)
        before = list(process.triton.loads)
        await new.predict(revision.revision, request, timeout_s=5)
        assert await new.ready(revision.revision)
        assert process.triton.unloads == [model_name(revision.revision, "1")]
        assert process.triton.loads == before == [model_name(revision.revision, owner) for owner in "01"]
    await process.stop()


async def test_what_a_killed_service_left_in_a_shared_triton_is_unloaded_before_anything_is_loaded(
    process: FakeProcess, revision: Revision, tmp_path: Path
) -> None:
    await process.start()
    for left in (model_name("aaaaaaaaaaaa", "0"), model_name("bbbbbbbbbbbb", "4")):
        (tmp_path / left / "1").mkdir(parents=True)
    # Of one that lives, of one without a lock, of somebody else.
    kept = (model_name("cccccccccccc", "2"), model_name("dddddddddddd", "3"), "densenet_onnx")
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "premotor-4.lock").touch()
    with (tmp_path / "premotor-2.lock").open("w") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        external = ExternalTriton(process.address, process.control_address, tmp_path)
        async with started(external) as backend:
            assert process.triton.unloads == [model_name("aaaaaaaaaaaa", "0"), model_name("bbbbbbbbbbbb", "4")]
            assert process.triton.loads == []
            await backend.load(revision)
            models = [name for name in names_in(tmp_path) if not name.endswith(".lock")]
            assert models == sorted([*kept, model_name(revision.revision, "0")])
    await process.stop()


async def test_a_model_repository_that_is_not_there_is_said_so(process: FakeProcess, tmp_path: Path) -> None:
    await process.start()
    external = ExternalTriton(process.address, process.control_address, tmp_path / "nowhere")
    with pytest.raises(TritonStartError, match=r"cannot be shared: .*No such file.*nowhere"):
        await external.start()
    await process.stop()


async def test_a_model_repository_that_cannot_be_written_is_no_verdict_and_is_tried_again_for_who_was_served(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    async with started(process, revision) as backend:
        (process.repository / model_name(other.revision)).touch()
        with pytest.raises(BackendUnavailableError, match=r"the model repository cannot be written: .*Not a directory"):
            await backend.load(other)
        in_the_way = process.repository / model_name(revision.revision)
        remove_model(process.repository, in_the_way.name)
        in_the_way.touch()
        await process.kill()
        # In vain in the Triton that was started for it, which is given up as well.
        await asyncio.wait_for(process.abandoned.wait(), 5)
        in_the_way.unlink()
        await become_ready(backend, revision)


async def test_after_a_restart_a_revision_that_cannot_be_brought_back_keeps_no_other_from_serving(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    bad, request = model_name(other.revision), process.triton.cases[0].request
    # The bad one comes first, and is not waited for.
    async with started(process, other) as backend:
        await backend.load(revision)
        process.triton.broken[bad] = (500, "CUDA out of memory")
        await process.kill()
        await process.triton.wait_for_loads(4, bad)
        await become_ready(backend, revision)
        await backend.predict(revision.revision, request, timeout_s=5)
        with pytest.raises(BackendUnavailableError, match="recovering"):
            await backend.predict(other.revision, request, timeout_s=5)
        assert process.num_starts == 2
        process.triton.broken.clear()
        await become_ready(backend, other)
        assert process.num_starts == 2


async def test_after_a_restart_a_load_that_hangs_keeps_no_other_from_serving(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    async with started(process, other) as backend:
        await backend.load(revision)
        process.triton.hung.add(model_name(other.revision))
        await process.kill()
        await process.triton.wait_for_loads(2, model_name(other.revision))
        await become_ready(backend, revision)
        assert not await backend.ready(other.revision)
        assert process.num_starts == 2


async def test_a_model_that_stays_dead_costs_others_nothing(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    request = process.triton.cases[0].request
    async with started(process, revision) as backend:
        await backend.load(other)
        process.triton.broken[model_name(other.revision)] = DEAD_STUB
        with pytest.raises(BackendUnavailableError):
            await backend.predict(other.revision, request, timeout_s=5)
        await process.triton.wait_for_loads(4, model_name(other.revision))
        await backend.predict(revision.revision, request, timeout_s=5)
        assert (process.num_starts, process.abandoned.is_set()) == (1, False)


async def test_a_heartbeat_that_one_of_several_answers_wrongly_costs_others_nothing(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    request = process.triton.cases[0].request
    async with started(process, revision, replace(QUICK, heartbeat_interval_s=0.02)) as backend:
        await backend.load(other)
        process.triton.broken[model_name(other.revision)] = (500, "out of its mind")
        await process.triton.wait_for_loads(3, model_name(other.revision))
        await backend.predict(revision.revision, request, timeout_s=5)
        process.triton.broken.clear()
        await become_ready(backend, other)
        assert (process.num_starts, process.abandoned.is_set()) == (1, False)


async def test_a_triton_that_no_longer_answers_is_given_up_whoever_is_ready(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    async with started(process, revision) as backend:
        await backend.load(other)
        process.triton.is_live = False
        process.triton.broken[model_name(other.revision)] = DEAD_STUB
        with pytest.raises(BackendUnavailableError):
            await backend.predict(other.revision, process.triton.cases[0].request, timeout_s=5)
        await asyncio.wait_for(process.abandoned.wait(), 5)
        process.triton.is_live = True
        process.triton.broken.clear()
        await become_ready(backend, other)
        await become_ready(backend, revision)


async def test_a_checkpoint_that_a_living_triton_refuses_twice_stays_refused(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    request = process.triton.cases[0].request
    async with started(process, revision) as backend:
        await backend.load(other)
        process.triton.broken[model_name(other.revision)] = DEAD_STUB
        process.triton.load_error = (grpc.StatusCode.INTERNAL, "Internal: CheckpointError: probe.npz is missing")
        with pytest.raises(BackendUnavailableError):
            await backend.predict(other.revision, request, timeout_s=5)
        await become_refused(backend, other, request)
        assert process.triton.loads.count(model_name(other.revision)) == 3
        await backend.predict(revision.revision, request, timeout_s=5)


async def test_a_revision_that_is_unloaded_while_it_is_brought_back_stays_away(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    async with started(process, revision) as backend:
        await backend.load(other)
        process.triton.broken[model_name(other.revision)] = DEAD_STUB
        with pytest.raises(BackendUnavailableError):
            await backend.predict(other.revision, process.triton.cases[0].request, timeout_s=5)
        await process.triton.wait_for_loads(3, model_name(other.revision))
        name = f"bring back {other.revision}"
        assert name in {task.get_name() for task in asyncio.all_tasks()}
        await backend.unload(other.revision)
        assert name not in {task.get_name() for task in asyncio.all_tasks()}
        assert process.triton.unloads == [model_name(other.revision)]


async def test_a_second_load_that_fails_does_not_end_the_recovery_of_what_was_served(
    process: FakeProcess, revision: Revision, other: Revision
) -> None:
    async with started(process, revision) as backend:
        await backend.load(other)
        process.triton.broken[model_name(other.revision)] = DEAD_STUB
        with pytest.raises(BackendUnavailableError):
            await backend.predict(other.revision, process.triton.cases[0].request, timeout_s=5)
        # For another policy that has the same checkpoint.
        with pytest.raises(BackendUnavailableError):
            await backend.load(other)
        process.triton.broken.clear()
        await become_ready(backend, other)
        assert process.triton.unloads == []


@pytest.mark.parametrize("ends", ["probe", "cancelled"])
async def test_a_model_that_does_not_become_ready_is_taken_out_of_triton_again(
    process: FakeProcess, revision: Revision, ends: str
) -> None:
    async with started(process) as backend:
        if ends == "probe":
            process.triton.offset = 0.1
            with pytest.raises(RevisionError, match="off by"):
                await backend.load(revision)
        else:
            process.triton.hung.add(model_name(revision.revision))
            loading = asyncio.create_task(backend.load(revision))
            await process.triton.wait_for_loads(1)
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            assert loading.cancelled()
        assert process.triton.unloads == [model_name(revision.revision)]
        assert list(process.repository.iterdir()) == []


async def test_a_model_that_its_first_process_no_longer_has_is_reported_to_it(
    process: FakeProcess, revision: Revision
) -> None:
    reported: list[str] = []
    async with started(process, revision, models=AnothersModels(reported.append)) as backend:
        process.triton.missing.add(model_name(revision.revision))
        process.triton.has_model = False
        with pytest.raises(BackendUnavailableError):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
        await asyncio.wait_for(process.triton.was_asked.wait(), 5)
        process.triton.missing.clear()
        process.triton.has_model = True
        await become_ready(backend, revision)
    assert reported == [revision.revision]
    assert process.triton.loads == []


async def test_a_triton_that_lets_only_some_load_models_is_shown_its_key(process, revision):
    process.triton.control_key = process.control_key = "robots=s3cret=="
    async with started(process, revision) as backend:
        assert await backend.ready(revision.revision)
    process.control_key = "robots=another"
    with pytest.raises(BackendUnavailableError, match="restricted"):
        async with started(process, revision):
            pass
