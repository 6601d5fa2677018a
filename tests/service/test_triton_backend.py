"""The backend's states, against a Triton that does as it is told: a real gRPC server on loopback without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from service.backend import BackendDeadlineError, BackendFailedError, BackendUnavailableError
from service.model_settings import ModelSettings
from service.probe import ProbeCase, read_probe
from service.revision import Revision, RevisionError, read_revision
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.server import ExternalTriton, TritonStartError
from service.triton.tensors import ACTIONS, META, TIMING

QUICK = SupervisionSettings(
    load_timeout_s=5.0, probe_timeout_s=5.0, heartbeat_interval_s=60.0, first_backoff_s=0.01, last_backoff_s=0.02
)
DEAD_STUB = (grpc.StatusCode.INTERNAL, "Stub process 'premotor_0_0' is not healthy.")


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers the probe with what was recorded; can be told to lie, to fail, to hold its answers."""

    cases: tuple[ProbeCase, ...]
    offset: float = 0.0
    load_error: tuple[grpc.StatusCode, str] | None = None
    infer_error: tuple[grpc.StatusCode, str] | None = None
    # Loading mends what inference fails with.
    load_mends: bool = True
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    num_inferences: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.holding.set()

    async def RepositoryModelLoad(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with self.arrived:
            self.loads.append(request.model_name)
            self.arrived.notify_all()
        if self.load_error is not None:
            await context.abort(*self.load_error)
        if self.load_mends:
            self.infer_error = None
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, _context: Any) -> Any:
        self.unloads.append(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()

    async def ServerLive(self, _request: Any, _context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="fake")

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with self.arrived:
            self.num_inferences += 1
            self.arrived.notify_all()
        await self.holding.wait()
        if self.infer_error is not None:
            await context.abort(*self.infer_error)
        position = [tensor.name for tensor in request.inputs].index(META)
        embodiment_index, seed = np.frombuffer(request.raw_input_contents[position], np.int64)[:2]
        expected = next(
            case.expected
            for case in self.cases
            if (case.request.embodiment_index, case.request.seed) == (embodiment_index, seed)
        )
        actions, timing = expected[None] + np.float32(self.offset), np.array([[1_000_000, 1]], np.int64)
        response = service_pb2.ModelInferResponse(raw_output_contents=[actions.tobytes(), timing.tobytes()])
        response.outputs.add(name=ACTIONS, shape=actions.shape)
        response.outputs.add(name=TIMING, shape=timing.shape)
        return response

    async def wait_for_inferences(self, count: int) -> None:
        async with asyncio.timeout(5), self.arrived:
            await self.arrived.wait_for(lambda: self.num_inferences >= count)

    async def wait_for_loads(self, count: int) -> None:
        async with asyncio.timeout(5), self.arrived:
            await self.arrived.wait_for(lambda: len(self.loads) >= count)


class FakeProcess:
    """A TritonServer whose process is a gRPC server in this loop: it can be killed, and its starts can fail."""

    def __init__(self, triton: FakeTriton, repository: Path) -> None:
        self.triton = triton
        self.repository = repository
        self.address = ""
        self.num_starts = 0
        self.num_failing_starts = 0
        self.abandoned = asyncio.Event()
        self._lost = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.num_starts += 1
        if self.num_failing_starts > 0:
            self.num_failing_starts -= 1
            raise TritonStartError("told to fail")
        self._lost.clear()
        self._server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.triton, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def wait_lost(self) -> str:
        await self._lost.wait()
        return "killed"

    async def kill(self) -> None:
        await self.stop()
        self._lost.set()

    async def abandon(self) -> None:
        self.abandoned.set()
        await self.kill()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


@pytest.fixture(scope="module")
def revision(toy_checkpoint: Path) -> Revision:
    return read_revision(toy_checkpoint, policy="tabletop")


@pytest.fixture
def process(revision: Revision, tmp_path: Path) -> FakeProcess:
    # One case per body and seed: that is what the fake tells them apart by.
    cases = {(case.request.embodiment_index, case.request.seed): case for case in reversed(read_probe(revision))}
    return FakeProcess(FakeTriton(tuple(cases.values())), tmp_path)


@asynccontextmanager
async def started(
    process: Any, revision: Revision | None = None, supervision: SupervisionSettings = QUICK, **settings: Any
) -> AsyncIterator[TritonBackend]:
    backend = TritonBackend(process, ModelSettings(**settings), supervision)
    try:
        await backend.start()
        if revision is not None:
            await backend.load(revision)
        yield backend
    finally:
        await backend.close()


async def become_ready(backend: TritonBackend, revision: Revision) -> None:
    for _ in range(1000):
        if await backend.ready(revision.revision):
            return
        await asyncio.sleep(0.005)
    pytest.fail("the revision did not become ready within 5 s")


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
        assert chunk.inference_s == 0.001
        assert chunk.queue_s > 0


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
        await process.triton.wait_for_loads(2)
        with pytest.raises(BackendUnavailableError):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=1)
        assert not await backend.ready(revision.revision)
        assert process.num_starts == 2


async def test_only_two_batches_are_inside_triton_and_the_expired_is_never_sent(
    process: FakeProcess, revision: Revision
) -> None:
    async with started(process, revision, max_batch_size=2) as backend:
        process.triton.holding.clear()
        request = process.triton.cases[0].request
        before = process.triton.num_inferences
        inside = [asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5)) for _ in range(4)]
        await process.triton.wait_for_inferences(before + 4)
        with pytest.raises(BackendDeadlineError):
            await backend.predict(revision.revision, request, timeout_s=0.05)
        waiting = asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5))
        process.triton.holding.set()
        await asyncio.gather(*inside, waiting)
        assert process.triton.num_inferences == before + 5


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
        process.triton.infer_error = (grpc.StatusCode.INTERNAL, "InvalidObservationError: steps")
        with pytest.raises(BackendFailedError, match="InvalidObservationError"):
            await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
        assert await backend.ready(revision.revision)


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
        process.triton.infer_error = (grpc.StatusCode.UNKNOWN, "out of its mind")
        await asyncio.wait_for(process.abandoned.wait(), timeout=5)
        await become_ready(backend, revision)


async def test_closing_ends_calls_in_progress_as_unavailable(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision, max_batch_size=1) as backend:
        process.triton.holding.clear()
        before = process.triton.num_inferences
        asking = [
            asyncio.create_task(backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5))
            for _ in range(4)
        ]
        await process.triton.wait_for_inferences(before + 2)
        await backend.close()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(answer) for answer in answers] == [BackendUnavailableError] * 4
    assert process.triton.unloads == process.triton.loads


async def test_a_cancelled_call_is_cancelled_and_makes_room(process: FakeProcess, revision: Revision) -> None:
    async with started(process, revision, batching=False) as backend:
        process.triton.holding.clear()
        before = process.triton.num_inferences
        request = process.triton.cases[0].request
        asking = [asyncio.create_task(backend.predict(revision.revision, request, timeout_s=5)) for _ in range(3)]
        await process.triton.wait_for_inferences(before + 2)
        asking[0].cancel()
        with suppress(asyncio.CancelledError):
            await asking[0]
        assert asking[0].cancelled()
        await process.triton.wait_for_inferences(before + 3)
        process.triton.holding.set()
        await asyncio.gather(*asking[1:])


async def test_a_triton_of_somebody_else_is_waited_for_used_and_left_running(
    process: FakeProcess, revision: Revision, tmp_path: Path
) -> None:
    await process.start()
    external = ExternalTriton(process.address, tmp_path, startup_timeout_s=5, poll_interval_s=0.01)
    async with started(external, revision) as backend:
        await backend.predict(revision.revision, process.triton.cases[0].request, timeout_s=5)
    assert process.triton.unloads == [f"premotor_{revision.revision}"]
    assert not (tmp_path / f"premotor_{revision.revision}").exists()
    lost = asyncio.create_task(external.wait_lost())
    await process.kill()
    assert "does not answer" in await asyncio.wait_for(lost, timeout=5)


async def test_a_triton_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    external = ExternalTriton("127.0.0.1:1", tmp_path, startup_timeout_s=0.1)
    with pytest.raises(TritonStartError, match=r"127.0.0.1:1 did not answer within 0.1 s"):
        await external.start()
