"""The backend on a real Triton: values, batches, deaths."""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from policy.checkpoint import load_probe
from policy.policy import Policy
from policy.request import ChunkRequest
from service.backend import (
    BackendChunk,
    BackendDeadlineError,
    BackendError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
    InstructionRefusedError,
    RealTimeChunking,
)
from service.local import to_chunk_request
from service.model_settings import ModelSettings
from service.probe import ProbeCase, read_probe
from service.revision import Revision, RevisionError, read_revision
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.control import TritonControl
from service.triton.http import TritonConnections
from service.triton.installation import find_installation
from service.triton.repository import model_name
from service.triton.server import ExternalTriton, TritonProcess, TritonProcessSettings
from tests.conftest import num_shared_requests

pytestmark = pytest.mark.asyncio(loop_scope="module")
RECOVERY_S = 60.0


@dataclass(frozen=True)
class Running:
    """A backend on a Triton of its own that serves the toy checkpoint."""

    backend: TritonBackend
    process: TritonProcess
    revision: Revision
    cases: tuple[ProbeCase, ...]
    policy: Policy

    async def predict(self, request: BackendRequest, *, timeout_s: float = 30.0) -> BackendChunk:
        return await self.backend.predict(self.revision.revision, request, timeout_s=timeout_s)

    def in_process(self, request: BackendRequest) -> np.ndarray:
        """What the policy itself answers, asked in its own words."""
        spec = list(self.policy.embodiments.values())[request.embodiment_index]
        frames = dict(zip(spec.camera_names, map(torch.tensor, request.images), strict=True))
        asked = ChunkRequest(
            embodiment=spec.name,
            images=frames,
            state=torch.tensor(request.state),
            instruction=request.instruction,
            history_states=torch.tensor(request.history_states),
            history_actions=torch.tensor(request.history_actions),
            seed=request.seed,
            num_inference_steps=request.num_inference_steps,
            real_time_chunking=to_chunk_request(list(self.policy.embodiments.values()), request).real_time_chunking,
        )
        return self.policy.predict_chunk([asked])[0].numpy()

    def kill(self, name: str) -> None:
        """SIGKILL for the one process of that name below this one."""
        self.child(name).kill()

    def child(self, name: str) -> psutil.Process:
        """The one process of that name below this one."""
        found = [child for child in psutil.Process().children(recursive=True) if self._is(child, name)]
        assert len(found) == 1, found
        return found[0]

    @staticmethod
    def _is(process: psutil.Process, name: str) -> bool:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.exe()).name == name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(toy_checkpoint: Path) -> AsyncIterator[Running]:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton's wheel is for Linux x86-64")
    revision = read_revision(toy_checkpoint, policy="toy")
    process = TritonProcess(find_installation(), TritonProcessSettings(grace_s=2.0))
    backend = TritonBackend(process, ModelSettings(max_batch_size=8), SupervisionSettings())
    try:
        await backend.start()
        await backend.load(revision)
        policy = Policy.from_checkpoint(toy_checkpoint)
        yield Running(backend, process, revision, read_probe(revision), policy)
    finally:
        await backend.close()


def requests_of_all_kinds(cases: tuple[ProbeCase, ...]) -> list[BackendRequest]:
    """Every body at three resolutions, with and without history and a chunk to continue, of several seeds and steps."""
    rng = np.random.default_rng(0)
    requests = []
    for number, (height, width) in enumerate(((32, 32), (48, 64), (17, 33))):
        for case in cases:
            frames = tuple(rng.integers(0, 256, (height, width, 3), np.uint8) for _ in case.request.images)
            request = replace(
                case.request, images=frames, seed=2**40 * number, num_inference_steps=1 + number, instruction="é" * 9
            )
            keep = number % 2
            chunking = RealTimeChunking(
                previous_actions=-case.expected[number:],
                inference_delay=number,
                execution_horizon=2,
                method="guidance",
                max_guidance_weight=2.5,
            )
            requests.append(
                replace(
                    request,
                    history_states=request.history_states[: keep * 9],
                    history_actions=request.history_actions[: keep * 9],
                    real_time_chunking=chunking if number else None,
                )
            )
    return requests


async def test_chunks_equal_those_in_process(running: Running) -> None:
    for request in (*(case.request for case in running.cases), *requests_of_all_kinds(running.cases)):
        chunk = await running.predict(request)
        np.testing.assert_allclose(chunk.actions, running.in_process(request), rtol=0, atol=1e-5)
        assert 0 < chunk.inference_s < 10
        assert 0 < chunk.queue_s < 10


async def test_robots_of_different_bodies_share_batches_and_get_their_own_chunks(running: Running) -> None:
    requests = requests_of_all_kinds(running.cases) * 4
    expected = [running.in_process(request) for request in requests]
    sizes: dict[int, int] = {}
    connections = TritonConnections(running.process.address)
    # A toy may be done with a request before a busy machine has sent the next.
    for _ in range(20):
        chunks = await asyncio.gather(*(running.predict(request) for request in requests))
        for chunk, own in zip(chunks, expected, strict=True):
            np.testing.assert_allclose(chunk.actions, own, rtol=0, atol=1e-5)
        answer = await connections.ask("GET", f"/v2/models/{model_name(running.revision.revision)}/stats")
        (statistics,) = json.loads(answer.content)["model_stats"]
        sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in statistics["batch_stats"]}
        if max(sizes) > 2:
            break
    connections.close()
    assert max(sizes) > 2, sizes


def with_large_frames(case: ProbeCase, height: int) -> BackendRequest:
    rng = np.random.default_rng(height)
    frames = tuple(rng.integers(0, 256, (height, 200, 3), np.uint8) for _ in case.request.images)
    return replace(case.request, images=frames, seed=height)


async def test_large_frames_lie_in_shared_memory_and_none_is_taken_for_anothers(running: Running) -> None:
    requests = [with_large_frames(case, 200 + 8 * number) for number in range(6) for case in running.cases]
    expected = [running.in_process(request) for request in requests]
    for _ in range(3):
        chunks = await asyncio.gather(*(running.predict(request) for request in requests))
        for chunk, own in zip(chunks, expected, strict=True):
            np.testing.assert_allclose(chunk.actions, own, rtol=0, atol=1e-5)
        assert 0 < num_shared_requests() <= len(requests)


async def test_a_large_request_that_is_given_up_is_not_read_as_the_next(running: Running) -> None:
    given_up, kept = (with_large_frames(running.cases[0], height) for height in (300, 304))
    await running.predict(kept)
    expected = running.in_process(kept)
    for _ in range(5):
        with pytest.raises(BackendDeadlineError):
            await running.predict(given_up, timeout_s=1e-4)
        chunk = await running.predict(kept)
        np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=1e-5)


async def test_a_request_that_fails_fails_alone(running: Running) -> None:
    good = running.cases[0].request
    unreadable, refused = replace(good, embodiment_index=99), replace(good, num_inference_steps=10_000)
    too_long = replace(good, instruction="1" * 129)
    asked = (good, unreadable, good, refused, good, too_long)
    answers = await asyncio.gather(*(running.predict(request) for request in asked), return_exceptions=True)
    assert [isinstance(answer, BackendFailedError) for answer in answers] == [False, True, False, True, False, False]
    assert isinstance(answers[5], InstructionRefusedError)
    assert str(answers[5]) == "observation.instruction: an instruction of 129 tokens came, expected at most 128"
    assert isinstance(answers[4], BackendChunk)
    np.testing.assert_allclose(answers[4].actions, running.cases[0].expected, rtol=0, atol=1e-5)


def flip_a_byte(directory: Path) -> None:
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def lose_a_file(directory: Path) -> None:
    (directory / "tokenizer" / "tokenizer.json").unlink()


def write_nan(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, directory / "model.safetensors")
    list_again(directory, "model.safetensors")


def record_another_chunk(directory: Path) -> None:
    with np.load(directory / "probe.npz") as arrays:
        kept = dict(arrays)
    kept["0/expected"] = kept["0/expected"] + np.float32(0.1)
    np.savez(directory / "probe.npz", **kept)
    list_again(directory, "probe.npz")


def list_again(directory: Path, name: str) -> None:
    """Makes the manifest agree with a changed file: only what is inside gives it away."""
    manifest = json.loads((directory / "manifest.json").read_text())
    content = (directory / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_byte, r"model\.safetensors has changed"),
        (lose_a_file, r"tokenizer/tokenizer\.json is missing"),
        (write_nan, r"model\.safetensors: weight .* holds NaN"),
        (record_another_chunk, r"probe\.npz: the chunk of embodiment .* is off by 0\.0"),
    ],
    ids=["a flipped byte", "a missing file", "NaN weights", "a failing probe"],
)
async def test_a_damaged_checkpoint_is_refused_saying_what_is_wrong(
    running: Running, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(running.revision.directory, directory)
    damage(directory)
    # Another revision, whatever its manifest says now: the healthy one goes on serving beside it.
    damaged = replace(running.revision, revision="badbadbadbad", directory=directory)
    with pytest.raises(RevisionError, match=said) as refusal:
        await running.backend.load(damaged)
    assert "At:" not in str(refusal.value)
    assert not await running.backend.ready("badbadbadbad")
    await running.predict(running.cases[0].request)


@pytest.mark.parametrize("victim", ["tritonserver", "triton_python_backend_stub"])
async def test_a_killed_process_costs_unavailable_answers_until_service_resumes_by_itself(
    running: Running, victim: str
) -> None:
    request, timeout_s = running.cases[0].request, 3.0
    loop = asyncio.get_running_loop()
    failures: list[BackendError] = []

    async def robot() -> float:
        """Asks until it has been failed and then answered; returns its longest wait."""
        slowest_s, failed, answered = 0.0, False, False
        while not (failed and answered):
            asked_s = loop.time()
            try:
                chunk = await running.predict(request, timeout_s=timeout_s)
                np.testing.assert_allclose(chunk.actions, running.cases[0].expected, rtol=0, atol=1e-5)
                answered = failed
            except BackendError as error:
                failures.append(error)
                failed = True
                # As a robot would: an answer that comes at once is no reason to ask at once.
                await asyncio.sleep(0.05)
            slowest_s = max(slowest_s, loop.time() - asked_s)
        return slowest_s

    robots = [asyncio.create_task(robot()) for _ in range(4)]
    await running.predict(request)
    running.kill(victim)
    async with asyncio.timeout(RECOVERY_S):
        slowest_s = max(await asyncio.gather(*robots))
    assert all(isinstance(failure, BackendUnavailableError) for failure in failures), failures
    assert slowest_s < timeout_s + 1.0
    assert await running.backend.ready(running.revision.revision)


async def test_a_model_that_only_stood_still_is_taken_for_dead_and_leaves_no_process_behind(running: Running) -> None:
    # As on a machine that has no time for it: Triton gives its process a second to say that it lives.
    request = running.cases[0].request
    await running.predict(request)
    still = running.child("triton_python_backend_stub")
    still.suspend()
    try:
        with pytest.raises(BackendUnavailableError):
            await running.predict(request)
        async with asyncio.timeout(RECOVERY_S):
            while not await running.backend.ready(running.revision.revision):  # noqa: ASYNC110  # no event says it
                await asyncio.sleep(0.05)
        chunk = await running.predict(request)
        np.testing.assert_allclose(chunk.actions, running.cases[0].expected, rtol=0, atol=1e-5)
        assert not still.is_running() or still.status() == psutil.STATUS_ZOMBIE
        assert running.child("triton_python_backend_stub").pid != still.pid
    finally:
        if still.is_running():
            still.kill()


async def test_another_service_in_the_same_triton_takes_nothing_with_it_when_it_stops(running: Running) -> None:
    process, revision, request = running.process, running.revision.revision, running.cases[0].request
    shared = ExternalTriton(process.address, process.control_address, process.repository)
    other = TritonBackend(shared, ModelSettings(max_batch_size=2), SupervisionSettings())
    connections = TritonConnections(process.address)
    try:
        await other.start()
        await other.load(running.revision)
        await other.predict(revision, request, timeout_s=30.0)
        await other.close()
        async with asyncio.timeout(RECOVERY_S):
            path = f"/v2/models/{model_name(revision, '0')}/ready"
            while (await connections.ask("GET", path)).status == 200:  # noqa: ASYNC110  # no event crosses processes
                await asyncio.sleep(0.05)
        await running.predict(request)
        assert {path.name for path in process.repository.iterdir()} == {model_name(revision), "premotor-0.lock"}
    finally:
        connections.close()
        await other.close()


async def test_a_model_that_somebody_unloaded_is_loaded_again(running: Running) -> None:
    request = running.cases[0].request
    control = TritonControl(running.process.control_address)
    await control.unload(model_name(running.revision.revision), timeout_s=10.0)
    async with asyncio.timeout(RECOVERY_S):
        # Triton goes on answering for a moment.
        with pytest.raises(BackendUnavailableError):
            while True:
                await running.predict(request)
        while not await running.backend.ready(running.revision.revision):  # noqa: ASYNC110  # as a robot would see it
            await asyncio.sleep(0.05)
    await running.predict(request)


async def test_the_probe_of_the_policy_and_of_the_service_are_the_same(running: Running) -> None:
    for (asked, expected), case in zip(load_probe(running.revision.directory), running.cases, strict=True):
        np.testing.assert_array_equal(expected.numpy(), case.expected)
        for frame, own in zip(asked.images.values(), case.request.images, strict=True):
            np.testing.assert_array_equal(frame.numpy(), own)
        np.testing.assert_array_equal(asked.state.numpy(), case.request.state)
        assert asked.history_states is not None
        np.testing.assert_array_equal(asked.history_states.numpy(), case.request.history_states)
        assert (asked.instruction, asked.seed) == (case.request.instruction, case.request.seed)
