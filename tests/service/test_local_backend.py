"""The same policy in process: batches, deadlines, failures."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from policy.policy import Policy
from service.backend import (
    BackendDeadlineError,
    BackendError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
    InstructionRefusedError,
    RealTimeChunking,
)
from service.inference import load_policy
from service.local import LocalBackend
from service.model_settings import ModelSettings
from service.probe import ProbeCase, read_probe
from service.revision import Revision, RevisionError, read_revision


@pytest.fixture(scope="module")
def revision(toy_checkpoint: Path) -> Revision:
    return read_revision(toy_checkpoint, policy="tabletop")


@pytest.fixture(scope="module")
def cases(revision: Revision) -> tuple[ProbeCase, ...]:
    return read_probe(revision)


@pytest_asyncio.fixture
async def backend(revision: Revision) -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(ModelSettings(max_batch_size=4))
    await backend.start()
    await backend.load(revision)
    yield backend
    await backend.close()


async def test_chunks_are_those_that_were_recorded(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    for case in cases:
        chunk = await backend.predict(revision.revision, case.request, timeout_s=10)
        np.testing.assert_allclose(chunk.actions, case.expected, rtol=0, atol=1e-5)
        assert chunk.inference_s > 0


async def test_requests_of_different_bodies_that_wait_together_run_together(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    mixed = [cases[i % len(cases)] for i in range(4)]
    chunks = await asyncio.gather(*(backend.predict(revision.revision, case.request, timeout_s=10) for case in mixed))
    for case, chunk in zip(mixed, chunks, strict=True):
        np.testing.assert_allclose(chunk.actions, case.expected, rtol=0, atol=1e-5)
    # One forward is timed once, for everybody in it.
    assert len({chunk.inference_s for chunk in chunks}) == 1


async def test_a_request_that_continues_a_chunk_runs_with_those_that_do_not(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    plain = cases[0]
    chunking = RealTimeChunking(
        previous_actions=-plain.expected[2:],
        inference_delay=1,
        execution_horizon=2,
        method="guidance",
        max_guidance_weight=5.0,
    )
    continuing = replace(plain.request, real_time_chunking=chunking)
    alone = await backend.predict(revision.revision, continuing, timeout_s=10)
    requests = [plain.request, continuing, plain.request]
    first, second, third = await asyncio.gather(
        *(backend.predict(revision.revision, request, timeout_s=10) for request in requests)
    )
    assert first.batch_size == 3
    np.testing.assert_allclose(second.actions, alone.actions, rtol=0, atol=1e-5)
    for chunk in (first, third):
        np.testing.assert_allclose(chunk.actions, plain.expected, rtol=0, atol=1e-5)
    assert np.abs(second.actions - plain.expected).max() > 1e-3


async def test_a_prefix_that_the_checkpoint_was_not_trained_for_fails_alone(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    chunking = RealTimeChunking(
        previous_actions=cases[0].expected,
        inference_delay=1,
        execution_horizon=2,
        method="prefix",
        max_guidance_weight=5.0,
    )
    good = cases[0].request
    untrained = replace(good, real_time_chunking=chunking)
    first, failed, last = await asyncio.gather(
        *(backend.predict(revision.revision, request, timeout_s=10) for request in (good, untrained, good)),
        return_exceptions=True,
    )
    assert isinstance(failed, BackendFailedError) and "not trained for" in str(failed)
    for answer in (first, last):
        assert not isinstance(answer, BaseException)
        np.testing.assert_allclose(answer.actions, cases[0].expected, rtol=0, atol=1e-5)


async def test_an_instruction_that_is_too_long_is_refused_with_both_numbers(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    with pytest.raises(InstructionRefusedError, match=r"^observation\.instruction: an instruction of 129 tokens came"):
        await backend.predict(revision.revision, replace(cases[0].request, instruction="1" * 129), timeout_s=10)


async def test_the_event_loop_turns_while_the_model_runs(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    asking = asyncio.create_task(
        backend.predict(revision.revision, replace(cases[0].request, num_inference_steps=8), timeout_s=10)
    )
    turns = 0
    while not asking.done():
        turns += 1
        await asyncio.sleep(0)
    await asking
    assert turns > 10


async def test_a_request_that_fails_fails_alone(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    good = cases[0].request
    unreadable, refused = replace(good, embodiment_index=99), replace(good, num_inference_steps=10_000)
    answers = await asyncio.gather(
        *(backend.predict(revision.revision, r, timeout_s=10) for r in (good, unreadable, refused, good)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers[1:3]] == [BackendFailedError] * 2
    for answer in (answers[0], answers[3]):
        assert not isinstance(answer, BaseException)
        np.testing.assert_allclose(answer.actions, cases[0].expected, rtol=0, atol=1e-5)


async def test_robots_are_answered_while_another_revision_loads(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def load_slowly(directory: Path, **settings: Any) -> Policy:
        begun.set()
        assert may_end.wait(30)
        return load_policy(directory, **settings)

    monkeypatch.setattr("service.local.load_policy", load_slowly)
    loading = asyncio.create_task(backend.load(replace(revision, revision="another")))
    try:
        assert await asyncio.to_thread(begun.wait, 10)
        for case in cases:
            chunk = await backend.predict(revision.revision, case.request, timeout_s=10)
            np.testing.assert_allclose(chunk.actions, case.expected, rtol=0, atol=1e-5)
        assert not loading.done() and not await backend.ready("another")
    finally:
        may_end.set()
    await loading
    assert (await backend.predict("another", cases[0].request, timeout_s=10)).batch_size == 1


async def test_a_revision_that_is_unloaded_is_gone_from_memory_although_it_was_the_last_to_answer(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Policy]] = []

    def load(directory: Path, **settings: Any) -> Policy:
        policy = load_policy(directory, **settings)
        loaded.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr("service.local.load_policy", load)
    await backend.load(replace(revision, revision="another"))
    await backend.predict("another", cases[0].request, timeout_s=10)
    assert loaded[0]() is not None
    await backend.unload("another")
    gc.collect()
    assert loaded[0]() is None


async def test_a_shadow_waits_for_every_robot_also_for_those_that_came_after_it(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    request = cases[0].request
    ended: list[str] = []

    async def ask(who: str, request: BackendRequest) -> int:
        chunk = await backend.predict(revision.revision, request, timeout_s=10)
        ended.append(who)
        return chunk.batch_size

    copy = replace(request, is_shadow=True)
    asked = [("shadow", copy), *[("robot", request)] * 5, ("shadow", copy)]
    # Nor does it make the batch of a robot larger.
    assert await asyncio.gather(*(ask(who, each) for who, each in asked)) == [2, 4, 4, 4, 4, 1, 2]
    assert ended == ["robot"] * 5 + ["shadow"] * 2


async def test_what_has_expired_is_not_run(
    backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]
) -> None:
    expired, chunk = await asyncio.gather(
        *(backend.predict(revision.revision, cases[0].request, timeout_s=timeout_s) for timeout_s in (0.0, 10.0)),
        return_exceptions=True,
    )
    assert isinstance(expired, BackendDeadlineError)
    # It came first, and would have been in the same batch.
    assert not isinstance(chunk, BaseException) and chunk.batch_size == 1
    np.testing.assert_allclose(chunk.actions, cases[0].expected, rtol=0, atol=1e-5)


async def test_there_is_room_for_what_runs_and_for_the_next_batch(backend: LocalBackend, revision: Revision) -> None:
    assert backend.capacity(revision.revision) == 8


async def test_a_revision_that_is_not_loaded_is_unavailable(
    backend: LocalBackend, cases: tuple[ProbeCase, ...]
) -> None:
    assert not await backend.ready("0" * 12)
    with pytest.raises(BackendUnavailableError):
        await backend.predict("0" * 12, cases[0].request, timeout_s=1)


async def test_closing_ends_what_waits(backend: LocalBackend, revision: Revision, cases: tuple[ProbeCase, ...]) -> None:
    asking = [
        asyncio.create_task(backend.predict(revision.revision, cases[0].request, timeout_s=10)) for _ in range(12)
    ]
    await asyncio.sleep(0)
    await backend.close()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert any(isinstance(answer, BackendUnavailableError) for answer in answers)
    assert all(isinstance(answer, BackendUnavailableError) for answer in answers if isinstance(answer, BackendError))
    assert not await backend.ready(revision.revision)


async def test_a_flipped_byte_is_refused_naming_the_file(revision: Revision, tmp_path: Path) -> None:
    directory = tmp_path / "flipped"
    shutil.copytree(revision.directory, directory)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    backend = LocalBackend(ModelSettings())
    try:
        with pytest.raises(RevisionError, match=r"model\.safetensors has changed"):
            await backend.load(replace(revision, directory=directory))
        assert not await backend.ready(revision.revision)
    finally:
        await backend.close()
