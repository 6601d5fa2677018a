"""Requests and answers between the gateway and Triton."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from service.backend import BackendFailedError, BackendRequest, RealTimeChunking
from service.triton.client import decode_response, encode_request
from service.triton.http import HttpAnswer
from service.triton.tensors import ACTIONS, FLOATS, INSTRUCTION, META, METHODS, PIXELS, TIMING

DTYPES = {"UINT8": np.uint8, "FP32": np.float32, "INT64": np.int64}


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


def contents(request: BackendRequest) -> dict[str, np.ndarray]:
    """The tensors of an encoded request, read as KServe v2 says."""
    description, binary = encode_request(request)
    tensors, offset = {}, 0
    for tensor in json.loads(description)["inputs"]:
        num_bytes = tensor["parameters"]["binary_data_size"]
        array = np.frombuffer(binary[offset : offset + num_bytes], DTYPES[tensor["datatype"]])
        tensors[tensor["name"]] = array.reshape(tensor["shape"])
        offset += num_bytes
    assert offset == len(binary)
    return tensors


def test_every_number_of_a_request_is_where_the_layout_says() -> None:
    request = backend_request()
    tensors = contents(request)
    assert tensors[META].tolist() == [[1, 2**63 - 1, 4, 2, 0, 0, 0, 0, 4, 5, 7, 5]]
    assert bytes(tensors[INSTRUCTION]).decode() == request.instruction
    first, second = np.split(tensors[PIXELS][0], [4 * 5 * 3])
    np.testing.assert_array_equal(first.reshape(4, 5, 3), request.images[0])
    np.testing.assert_array_equal(second.reshape(7, 5, 3), request.images[1])
    np.testing.assert_array_equal(
        tensors[FLOATS][0],
        np.concatenate([request.state, request.history_states.ravel(), request.history_actions.ravel()]),
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
    tensors = contents(replace(plain, real_time_chunking=chunking))
    assert tensors[META].tolist() == [[1, 2**63 - 1, 4, 2, 3, 2, 8, METHODS.index("prefix"), 4, 5, 7, 5]]
    floats = contents(plain)[FLOATS][0]
    np.testing.assert_array_equal(tensors[FLOATS][0], [*floats, 0, 3, 1, 4, 2, 5, 2.5])


def test_no_history_is_a_length_of_zero() -> None:
    tensors = contents(backend_request(history=0))
    assert tensors[META][0, 3] == 0
    assert tensors[FLOATS].shape == (1, 3)


def test_arrays_that_are_views_are_sent_as_what_they_show() -> None:
    request = backend_request()
    strided = replace(
        request,
        images=tuple(np.ascontiguousarray(frame[::-1])[::-1] for frame in request.images),
        state=np.repeat(request.state, 2)[::2],
        history_states=np.asfortranarray(request.history_states),
    )
    for name, tensor in contents(strided).items():
        np.testing.assert_array_equal(tensor, contents(request)[name])


def answer(**tensors: np.ndarray) -> HttpAnswer:
    outputs = [
        {
            "name": name,
            "datatype": {"float32": "FP32", "int64": "INT64"}[tensor.dtype.name],
            "shape": tensor.shape,
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name, tensor in tensors.items()
    ]
    description = json.dumps({"model_name": "model", "outputs": outputs}).encode()
    content = description + b"".join(tensor.tobytes() for tensor in tensors.values())
    headers = {b"inference-header-content-length": str(len(description)).encode()}
    return HttpAnswer(status=200, headers=headers, content=content)


def with_bytes_lost(whole: HttpAnswer) -> HttpAnswer:
    """What the stub of the wheel makes of a numpy array under numpy 2: a good description, bytes missing."""
    return replace(whole, content=whole.content[:-8])


def test_an_answer_is_read_by_name_and_shape() -> None:
    actions = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    timing = np.array([[1_500_000, 3]], np.int64)
    decoded, inference_s, batch_size = decode_response(answer(**{TIMING: timing, ACTIONS: actions}))
    np.testing.assert_array_equal(decoded, actions[0])
    assert (inference_s, batch_size) == (0.0015, 3)


ACTIONS_ANSWER = {ACTIONS: np.zeros((1, 3, 2), np.float32)}
TIMING_ANSWER = {TIMING: np.zeros((1, 2), np.int64)}


@pytest.mark.parametrize(
    "wrong",
    [
        answer(),
        answer(**ACTIONS_ANSWER),
        answer(**{ACTIONS: np.zeros((3, 2), np.float32)}, **TIMING_ANSWER),
        answer(**{ACTIONS: np.zeros((1, 3, 2), np.int64)}, **TIMING_ANSWER),
        answer(**ACTIONS_ANSWER, **{TIMING: np.zeros((1, 0), np.int64)}),
        answer(**ACTIONS_ANSWER, **TIMING_ANSWER, OTHER=np.zeros(1, np.float32)),
        with_bytes_lost(answer(**ACTIONS_ANSWER, **TIMING_ANSWER)),
        HttpAnswer(status=200, headers={}, content=b"{}"),
        HttpAnswer(status=200, headers={b"inference-header-content-length": b"2"}, content=b"[]"),
    ],
    ids=[
        "nothing", "no timing", "no batch dimension", "another type", "empty timing", "an unknown tensor", "bytes lost",
        "no JSON length", "a list",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_chunk_is_a_failure(wrong: HttpAnswer) -> None:
    with pytest.raises(BackendFailedError, match="not a chunk"):
        decode_response(wrong)
