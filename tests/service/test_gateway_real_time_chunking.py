"""What a request says of the chunk being played is checked and reaches the backend; the method used is said."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from premotor.v1 import policy_pb2
from premotor.wire import encode_tensor, read_error_metadata
from service.errors import InvalidRequestError
from service.gateway.limits import GatewayLimits
from service.gateway.real_time_chunking import DEFAULT_MAX_GUIDANCE_WEIGHT
from service.gateway.validation import RequestValidator

TIMEOUT_S = 10.0
GUIDANCE, PREFIX = policy_pb2.RealTimeChunking.METHOD_GUIDANCE, policy_pb2.RealTimeChunking.METHOD_PREFIX
PREVIOUS = np.arange(6 * 8, dtype=np.float32).reshape(6, 8)


def trained_for(kit, max_inference_delay: int) -> policy_pb2.Policy:
    description = policy_pb2.Policy()
    description.CopyFrom(kit.revision.description)
    description.max_inference_delay = max_inference_delay
    description.real_time_chunking_methods.append(PREFIX)
    return description


def asking(kit, actions: np.ndarray | None = PREVIOUS, **fields):
    request = kit.request()
    if actions is not None:
        request.real_time_chunking.previous_actions.CopyFrom(encode_tensor(actions))
    for name, value in fields.items():
        setattr(request.real_time_chunking, name, value)
    return request


def check(kit, request, max_inference_delay: int = 0):
    description = trained_for(kit, max_inference_delay) if max_inference_delay else kit.revision.description
    return RequestValidator(description, GatewayLimits()).check(request).real_time_chunking


def test_a_request_that_does_not_ask_has_none(kit):
    assert check(kit, kit.request()) is None


def test_a_request_is_read_as_it_was_sent(kit):
    chunking = check(kit, asking(kit, inference_delay=6, execution_horizon=16, max_guidance_weight=2.5))
    np.testing.assert_array_equal(chunking.previous_actions, PREVIOUS)
    assert (chunking.inference_delay, chunking.execution_horizon) == (6, 16)
    assert (chunking.method, chunking.max_guidance_weight) == ("guidance", 2.5)


def test_what_is_left_out_is_the_policys(kit):
    chunking = check(kit, asking(kit))
    assert (chunking.inference_delay, chunking.execution_horizon) == (0, kit.revision.description.execution_horizon)
    assert chunking.max_guidance_weight == DEFAULT_MAX_GUIDANCE_WEIGHT


@pytest.mark.parametrize(
    ("asked", "delay", "max_inference_delay", "used"),
    [
        (0, 2, 0, "guidance"),
        (0, 2, 2, "prefix"),
        (0, 3, 2, "guidance"),
        (GUIDANCE, 2, 2, "guidance"),
        (PREFIX, 2, 2, "prefix"),
    ],
)
def test_the_server_takes_prefix_where_the_policy_was_trained_for_the_delay(
    kit, asked, delay, max_inference_delay, used
):
    request = asking(kit, inference_delay=delay, method=asked)
    assert check(kit, request, max_inference_delay).method == used


NAN = PREVIOUS.copy()
NAN[2, 3] = np.nan
REFUSALS = {
    "no actions": (
        {"actions": None, "inference_delay": 1},
        "previous_actions",
        "none came, expected float32 [num_actions, 8]",
    ),
    "empty actions": ({"actions": PREVIOUS[:0]}, "previous_actions", "0 actions came, expected 1 to 16"),
    "too many actions": ({"actions": np.zeros((17, 8), np.float32)}, "previous_actions", "17 actions came"),
    "narrow actions": ({"actions": PREVIOUS[:, :7]}, "previous_actions.shape", "[6, 7] came, expected [any, 8]"),
    "NaN actions": ({"actions": NAN}, "previous_actions", "element [2, 3] is nan"),
    "actions of an unfilled buffer": (
        {"actions": PREVIOUS * np.float32(1e36)},
        "previous_actions",
        "element [0, 1] is 1e+36 (47 in all), expected -2147483648 to 2147483648",
    ),
    "byte actions": (
        {"actions": PREVIOUS.astype(np.uint8)},
        "previous_actions.data_type",
        "expected DATA_TYPE_FLOAT32",
    ),
    "negative delay": ({"inference_delay": -1}, "inference_delay", "-1 came, expected 0 to 6"),
    "delay beyond the actions": ({"inference_delay": 7}, "inference_delay", "7 came, expected 0 to 6"),
    "delay of the whole chunk": (
        {"actions": np.zeros((16, 8), np.float32), "inference_delay": 16},
        "inference_delay",
        "16 came, expected 0 to 15",
    ),
    "no horizon": ({"execution_horizon": 0}, "execution_horizon", "0 came, expected 1 to 16"),
    "long horizon": ({"execution_horizon": 17}, "execution_horizon", "17 came, expected 1 to 16"),
    "no weight": ({"max_guidance_weight": 0.0}, "max_guidance_weight", "0.0 came, expected more than 0, at most 100"),
    "NaN weight": (
        {"max_guidance_weight": np.nan},
        "max_guidance_weight",
        "nan came, expected more than 0, at most 100",
    ),
    "large weight": (
        {"max_guidance_weight": 100.5},
        "max_guidance_weight",
        "100.5 came, expected more than 0, at most 100",
    ),
    "untrained prefix": ({"method": PREFIX}, "method", "METHOD_PREFIX came, the policy supports METHOD_GUIDANCE"),
    "unknown method": ({"method": 9}, "method", "9 came, the policy supports METHOD_GUIDANCE"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_field_that_does_not_fit_is_refused_by_name(kit, name):
    fields, field, says = REFUSALS[name]
    with pytest.raises(InvalidRequestError) as refused:
        check(kit, asking(kit, **fields))
    assert refused.value.field == f"real_time_chunking.{field}"
    assert says in refused.value.message


def test_a_named_prefix_beyond_what_was_trained_for_is_refused(kit):
    with pytest.raises(InvalidRequestError, match="3 came, expected 0 to 2 of METHOD_PREFIX"):
        check(kit, asking(kit, inference_delay=3, method=PREFIX), 2)


@pytest.mark.asyncio
async def test_the_backend_gets_it_and_the_answer_says_what_was_used(kit):
    async with kit.serve() as gateway:
        plain = await gateway.stub.PredictChunk(kit.request(), timeout=TIMEOUT_S)
        guided = await gateway.stub.PredictChunk(asking(kit, inference_delay=2), timeout=TIMEOUT_S)
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(policy_pb2.StreamChunksRequest(request=asking(kit, inference_delay=2)))
        streamed = (await stream.read()).chunk
        stream.cancel()
        first, second, third = gateway.backend.requests
    assert first.real_time_chunking is None and plain.real_time_chunking_method == 0
    for request, answer in ((second, guided), (third, streamed)):
        np.testing.assert_array_equal(request.real_time_chunking.previous_actions, PREVIOUS)
        assert request.real_time_chunking.inference_delay == 2
        assert answer.real_time_chunking_method == GUIDANCE


@pytest.mark.asyncio
async def test_a_refusal_names_the_field_on_either_wire(kit):
    bad = asking(kit, inference_delay=9)
    async with kit.serve() as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.stub.PredictChunk(bad, timeout=TIMEOUT_S)
        stream = gateway.stub.StreamChunks(timeout=TIMEOUT_S)
        await stream.write(policy_pb2.StreamChunksRequest(request=bad))
        streamed = (await stream.read()).error
        stream.cancel()
        assert gateway.backend.requests == []
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = read_error_metadata(refused.value.trailing_metadata())
    assert details.field == streamed.field == "real_time_chunking.inference_delay"
