"""Requests and answers between the gateway and Triton."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from service.backend import BackendFailedError, BackendRequest
from service.triton.client import decode_response, encode_request
from service.triton.tensors import ACTIONS, FLOATS, INSTRUCTION, META, PIXELS, TIMING

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


def contents(message: service_pb2.ModelInferRequest) -> dict[str, np.ndarray]:
    return {
        tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    }


def test_every_number_of_a_request_is_where_the_layout_says() -> None:
    request = backend_request()
    tensors = contents(encode_request("model", request))
    assert tensors[META].tolist() == [[1, 2**63 - 1, 4, 2, 4, 5, 7, 5]]
    assert bytes(tensors[INSTRUCTION]).decode() == request.instruction
    first, second = np.split(tensors[PIXELS][0], [4 * 5 * 3])
    np.testing.assert_array_equal(first.reshape(4, 5, 3), request.images[0])
    np.testing.assert_array_equal(second.reshape(7, 5, 3), request.images[1])
    np.testing.assert_array_equal(
        tensors[FLOATS][0],
        np.concatenate([request.state, request.history_states.ravel(), request.history_actions.ravel()]),
    )


def test_no_history_is_a_length_of_zero() -> None:
    tensors = contents(encode_request("model", backend_request(history=0)))
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
    for name, tensor in contents(encode_request("model", strided)).items():
        np.testing.assert_array_equal(tensor, contents(encode_request("model", request))[name])


def response(**tensors: np.ndarray) -> service_pb2.ModelInferResponse:
    message = service_pb2.ModelInferResponse()
    for name, tensor in tensors.items():
        message.outputs.add(name=name, shape=tensor.shape)
        message.raw_output_contents.append(tensor.tobytes())
    return message


def test_an_answer_is_read_by_name_and_shape() -> None:
    actions = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    message = response(**{TIMING: np.array([[1_500_000, 3]], np.int64), ACTIONS: actions})
    decoded, inference_s = decode_response(message)
    np.testing.assert_array_equal(decoded, actions[0])
    assert inference_s == 0.0015


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {ACTIONS: np.zeros((1, 3, 2), np.float32)},
        {ACTIONS: np.zeros((3, 2), np.float32), TIMING: np.zeros((1, 2), np.int64)},
        {ACTIONS: np.zeros((1, 3, 2), np.float32), TIMING: np.zeros((1, 0), np.int64)},
    ],
    ids=["nothing", "no timing", "no batch dimension", "empty timing"],
)
def test_an_answer_that_is_no_chunk_is_a_failure(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(BackendFailedError, match="not a chunk"):
        decode_response(response(**tensors))


def test_an_answer_whose_bytes_were_lost_is_a_failure() -> None:
    message = response(**{ACTIONS: np.zeros((1, 3, 2), np.float32), TIMING: np.zeros((1, 2), np.int64)})
    message.raw_output_contents[0] = b""
    with pytest.raises(BackendFailedError, match="not a chunk"):
        decode_response(message)
