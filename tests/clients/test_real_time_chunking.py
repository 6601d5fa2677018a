"""What a robot says of the chunk it plays goes out whole or not at all, and the answer's method is held to it."""

from __future__ import annotations

import numpy as np
import pytest

from premotor.client import (
    AsyncPolicyClient,
    FixRequestError,
    PolicyClient,
    ProtocolError,
    RealTimeChunking,
)

PREVIOUS = np.arange(9, dtype=np.float32).reshape(3, 3)


def chunking(**changed) -> RealTimeChunking:
    return RealTimeChunking(**{"previous_actions": PREVIOUS, "inference_delay": 2, **changed})


@pytest.fixture
def client(gateway):
    with PolicyClient(gateway.address, timeout_s=5.0) as connected:
        yield connected


def test_a_request_carries_the_previous_actions_and_the_answer_says_how_they_were_used(
    client, gateway, arguments
) -> None:
    asked = chunking(execution_horizon=4, method="prefix", max_guidance_weight=2.5)
    assert client.predict_chunk(**arguments, real_time_chunking=asked).real_time_chunking_method == "prefix"
    sent = gateway.service.requests[0].real_time_chunking
    np.testing.assert_array_equal(np.frombuffer(sent.previous_actions.data, np.float32).reshape(3, 3), PREVIOUS)
    assert (sent.inference_delay, sent.execution_horizon, sent.max_guidance_weight) == (2, 4, 2.5)


def test_what_is_left_out_is_absent_on_the_wire(client, gateway, arguments) -> None:
    assert client.predict_chunk(**arguments).real_time_chunking_method is None
    assert client.predict_chunk(**arguments, real_time_chunking=chunking()).real_time_chunking_method == "guidance"
    plain, asked = gateway.service.requests
    assert not plain.HasField("real_time_chunking")
    for field in ("execution_horizon", "max_guidance_weight"):
        assert not asked.real_time_chunking.HasField(field)
    assert asked.real_time_chunking.method == 0


def test_a_stream_carries_it_too(client, gateway, arguments) -> None:
    with client.stream(timeout_s=5.0) as stream:
        stream.send(**arguments, real_time_chunking=chunking(method="guidance"))
        assert stream.receive().real_time_chunking_method == "guidance"


@pytest.mark.asyncio
async def test_the_asyncio_client_and_its_stream_carry_it(gateway, arguments) -> None:
    async with AsyncPolicyClient(gateway.address) as client:
        chunk = await client.predict_chunk(**arguments, real_time_chunking=chunking(method="prefix"))
        async with client.stream(timeout_s=5.0) as stream:
            await stream.send(**arguments, real_time_chunking=chunking(method="prefix"))
            streamed = await stream.receive()
    assert chunk.real_time_chunking_method == streamed.real_time_chunking_method == "prefix"


NAN = PREVIOUS.copy()
NAN[1, 2] = np.nan
REFUSALS = {
    "vector": ({"previous_actions": PREVIOUS[0]}, "previous_actions", r"shape \[3\] came"),
    "no rows": ({"previous_actions": PREVIOUS[:0]}, "previous_actions", r"shape \[0, 3\] came"),
    "NaN": ({"previous_actions": NAN}, "previous_actions", r"element \[1, 2\] is nan"),
    "negative delay": ({"inference_delay": -1}, "inference_delay", "-1 came, expected 0 to 3"),
    "delay beyond the actions": ({"inference_delay": 4}, "inference_delay", "4 came, expected 0 to 3"),
    "no horizon": ({"execution_horizon": 0}, "execution_horizon", "0 came, expected 1 to"),
    "unknown method": ({"method": "blend"}, "method", "'blend' came, expected 'auto', 'guidance' or 'prefix'"),
    "no weight": ({"max_guidance_weight": 0.0}, "max_guidance_weight", "0.0 came, expected more than 0, at most 100"),
    "NaN weight": (
        {"max_guidance_weight": np.nan},
        "max_guidance_weight",
        "nan came, expected more than 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_policy_could_accept_is_not_sent(client, gateway, arguments, name) -> None:
    changed, field, says = REFUSALS[name]
    with pytest.raises(FixRequestError, match=says) as refused:
        client.predict_chunk(**arguments, real_time_chunking=chunking(**changed))
    assert refused.value.field == f"real_time_chunking.{field}"
    assert gateway.service.requests == []


@pytest.mark.parametrize(
    ("asked", "answered", "says"),
    [
        ("prefix", 1, "'guidance' came, the request's was 'prefix'"),
        ("guidance", 0, "no real-time chunking came, the request's was 'guidance'"),
        ("auto", 9, "9 came, and the request did not ask for it"),
        (None, 1, "1 came, and the request did not ask for it"),
    ],
)
def test_an_answer_by_another_method_is_not_played(client, arguments, asked, answered, says) -> None:
    arguments = {**arguments, "instruction": f"method {answered}"}
    with pytest.raises(ProtocolError, match=says):
        client.predict_chunk(**arguments, real_time_chunking=chunking(method=asked) if asked else None)


def test_a_server_that_knows_no_real_time_chunking_gives_a_plain_chunk_and_it_shows(client, arguments) -> None:
    chunk = client.predict_chunk(**{**arguments, "instruction": "method 0"}, real_time_chunking=chunking())
    assert chunk.real_time_chunking_method is None


def test_a_description_says_which_methods_there_are(client, gateway) -> None:
    gateway.service.policy.real_time_chunking_methods.append(7)  # of a later server
    description = client.get_policy("tabletop")
    assert description.real_time_chunking_methods == ("guidance", "prefix")
    assert description.max_inference_delay == 2


def test_a_description_with_a_delay_that_cannot_be_is_refused(client, gateway) -> None:
    gateway.service.policy.max_inference_delay = -1
    with pytest.raises(ProtocolError, match="max_inference_delay is -1"):
        client.get_policy("tabletop")
