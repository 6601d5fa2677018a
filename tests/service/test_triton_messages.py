"""Requests and answers between the gateway and Triton."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from service.backend import BackendFailedError, BackendRequest, RealTimeChunking
from service.triton.client import decode_response, describe_request, request_parts
from service.triton.http import HttpAnswer
from service.triton.tensors import CHUNK, METHODS, REQUEST, REQUEST_HEAD


def backend_request(*, history: int = 2) -> BackendRequest:
    rng = np.random.default_rng(0)
    return BackendRequest(
        embodiment_index=1,
        images=tuple(rng.integers(0, 256, (height, 5, 3), np.uint8) for height in (4, 7)),
        state=rng.random(3, np.float32),
        instruction="ouvre le tiroir à gauche",
        history_states=rng.random((history, 3), np.float32),
        history_actions=rng.random((history, 2), np.float32),
        seed=2**63 - 1,
        num_inference_steps=4,
    )


def tensor(request: BackendRequest) -> bytes:
    """The one tensor of an encoded request, read as KServe v2 says."""
    content = b"".join(request_parts(request))
    (described,) = json.loads(describe_request(content))["inputs"]
    assert described == {
        "name": REQUEST,
        "datatype": "UINT8",
        "shape": [1, len(content)],
        "parameters": {"binary_data_size": len(content)},
    }
    return content


def parts(request: BackendRequest) -> tuple[list[int], np.ndarray, str, np.ndarray]:
    """Integers, floats, instruction and pixels of two cameras, cut where the layout says."""
    content = tensor(request)
    end_of_integers = 8 * (len(REQUEST_HEAD) + 2 * 2)
    integers = np.frombuffer(content[:end_of_integers], "<i8").tolist()
    heights_and_widths = np.reshape(integers[-4:], (2, 2))
    pixels = len(content) - 3 * heights_and_widths.prod(axis=1).sum()
    text = pixels - integers[REQUEST_HEAD.index("num_instruction_bytes")]
    floats = np.frombuffer(content[end_of_integers:text], "<f4")
    return integers, floats, content[text:pixels].decode(), np.frombuffer(content[pixels:], np.uint8)


def test_every_number_of_a_request_is_where_the_layout_says() -> None:
    request = backend_request()
    integers, floats, instruction, pixels = parts(request)
    assert integers == [1, 2**63 - 1, 4, 2, 25, 0, 0, 0, 0, 4, 5, 7, 5]
    assert instruction == request.instruction
    first, second = np.split(pixels, [4 * 5 * 3])
    np.testing.assert_array_equal(first.reshape(4, 5, 3), request.images[0])
    np.testing.assert_array_equal(second.reshape(7, 5, 3), request.images[1])
    np.testing.assert_array_equal(
        floats, np.concatenate([request.state, request.history_states.ravel(), request.history_actions.ravel()])
    )


def test_what_a_chunk_must_continue_comes_after_the_history() -> None:
    plain = backend_request()
    chunking = RealTimeChunking(
        previous_actions=np.arange(6, dtype=np.float32).reshape(2, 3).T,
        inference_delay=2,
        execution_horizon=8,
        method="prefix",
        max_guidance_weight=2.5,
    )
    integers, floats, *_ = parts(replace(plain, real_time_chunking=chunking))
    assert integers == [1, 2**63 - 1, 4, 2, 25, 3, 2, 8, METHODS.index("prefix"), 4, 5, 7, 5]
    np.testing.assert_array_equal(floats, [*parts(plain)[1], 0, 3, 1, 4, 2, 5, 2.5])


def test_no_history_is_a_length_of_zero() -> None:
    integers, floats, *_ = parts(backend_request(history=0))
    assert integers[REQUEST_HEAD.index("num_history_steps")] == 0
    assert floats.shape == (3,)


def test_arrays_that_are_views_are_sent_as_what_they_show() -> None:
    request = backend_request()
    strided = replace(
        request,
        images=tuple(np.ascontiguousarray(frame[::-1])[::-1] for frame in request.images),
        state=np.repeat(request.state, 2)[::2],
        history_states=np.asfortranarray(request.history_states),
    )
    assert tensor(strided) == tensor(request)


def answer(*chunks: bytes, name: str = CHUNK, datatype: str = "UINT8") -> HttpAnswer:
    """Of a model with as many outputs."""
    outputs = [
        {"name": name, "datatype": datatype, "shape": [1, len(chunk)], "parameters": {"binary_data_size": len(chunk)}}
        for chunk in chunks
    ]
    description = json.dumps({"model_name": "model", "outputs": outputs}).encode()
    headers = {b"inference-header-content-length": str(len(description)).encode()}
    return HttpAnswer(status=200, headers=headers, content=description + b"".join(chunks))


def chunk(horizon: int, action_dim: int, actions: np.ndarray) -> bytes:
    return np.array([1_500_000, 3, horizon, action_dim], "<i8").tobytes() + actions.astype("<f4").tobytes()


def with_bytes_lost(whole: HttpAnswer) -> HttpAnswer:
    """What the stub of the wheel makes of a numpy array under numpy 2: a good description, bytes missing."""
    return replace(whole, content=whole.content[:-8])


def test_an_answer_is_actions_and_what_they_took() -> None:
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    decoded, inference_s, batch_size = decode_response(answer(chunk(3, 2, actions)))
    np.testing.assert_array_equal(decoded, actions)
    assert (inference_s, batch_size) == (0.0015, 3)


SIX = np.zeros(6)


@pytest.mark.parametrize(
    "wrong",
    [
        answer(),
        answer(chunk(3, 2, SIX), chunk(3, 2, SIX)),
        answer(chunk(3, 2, SIX), name="ACTIONS"),
        answer(chunk(3, 2, SIX), datatype="FP32"),
        answer(chunk(3, 2, SIX)[:20]),
        answer(chunk(3, 2, SIX)[:-1]),
        answer(chunk(3, 3, SIX)),
        answer(chunk(-1, 2, SIX)),
        with_bytes_lost(answer(chunk(3, 2, SIX))),
        HttpAnswer(status=200, headers={}, content=b"{}"),
        HttpAnswer(status=200, headers={b"inference-header-content-length": b"2"}, content=b"[]"),
    ],
    ids=[
        "nothing", "two", "another name", "another type", "half a head", "half a number", "too few", "a negative shape",
        "bytes lost", "no JSON length", "a list",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_chunk_is_a_failure(wrong: HttpAnswer) -> None:
    with pytest.raises(BackendFailedError, match="not a chunk"):
        decode_response(wrong)
