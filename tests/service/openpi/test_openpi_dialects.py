"""Four dialects, told apart by what a message holds, and the form each gets its replies in."""

from __future__ import annotations

import numpy as np
import pytest
from openpi_client import msgpack_numpy

from premotor.v1 import policy_pb2
from service.errors import InvalidRequestError
from service.openpi.dialects import (
    VLLM_OMNI_PATH,
    Addressee,
    ChunkReply,
    Dialect,
    Verb,
    chunk_frame,
    done_frame,
    error_frame,
    find_addressee,
    read_call,
)

REPLY = ChunkReply(
    actions=np.arange(6, dtype=np.float32).reshape(3, 2),
    actions_key="actions",
    revision="abc",
    seed=7,
    infer_ms=3.0,
    policy_infer_ms=2.0,
    prev_total_ms=None,
)
ERROR = policy_pb2.RequestError(code=3, message="state: none came")


def call(message, path="/"):
    return read_call(message, find_addressee(message, path=path))


@pytest.mark.parametrize(
    ("message", "path", "dialect"),
    [
        ({"prompt": "go"}, "/", Dialect.OPENPI),
        ({"prompt": "go", "session_id": "s"}, "/any/path", Dialect.OPENPI),
        ({"type": np.zeros(2), "prompt": "go"}, "/", Dialect.OPENPI),
        ({"type": "gripper", "examples": "none"}, "/", Dialect.OPENPI),
        ({}, "/", Dialect.OPENPI),
        ({"endpoint": "infer"}, "/", Dialect.ROBOARENA),
        ({"endpoint": "reset"}, "/", Dialect.ROBOARENA),
        ({"endpoint": "infer", "type": "infer"}, VLLM_OMNI_PATH, Dialect.VLLM_OMNI),
        ({}, VLLM_OMNI_PATH, Dialect.VLLM_OMNI),
        ({"type": "infer"}, "/", Dialect.STARVLA),
        ({"type": "unheard of", "payload": {}}, "/", Dialect.STARVLA),
        ({"payload": {}}, "/", Dialect.STARVLA),
        ({"examples": [{}]}, "/", Dialect.STARVLA),
    ],
)
def test_a_dialect_is_told_by_content_and_vllm_omni_by_its_path(message, path, dialect):
    assert find_addressee(message, path=path).dialect is dialect


@pytest.mark.parametrize(
    ("message", "path", "verb"),
    [
        ({"prompt": "go"}, "/", Verb.INFER),
        ({"endpoint": "infer"}, "/", Verb.INFER),
        ({"endpoint": "reset"}, "/", Verb.RESET),
        ({"prompt": "go"}, VLLM_OMNI_PATH, Verb.INFER),
        ({"endpoint": "reset"}, VLLM_OMNI_PATH, Verb.RESET),
        ({"type": "infer", "payload": {}}, "/", Verb.INFER),
        ({"type": "predict_action", "payload": {}}, "/", Verb.INFER),
        ({"payload": {}}, "/", Verb.INFER),
        ({"type": "reset"}, "/", Verb.RESET),
        ({"type": "ping"}, "/", Verb.PING),
    ],
)
def test_what_is_asked_for(message, path, verb):
    assert call(message, path).verb is verb


def test_what_the_wire_says_of_itself_is_no_observation():
    said = call({"endpoint": "infer", "session_id": "s", "seed": 3, "mode": "x", "prompt": "go", "other": 1})
    assert said.observation == {"prompt": "go", "other": 1}
    assert said.seed == 3


def test_starvla_wraps_an_observation_or_lists_one():
    wrapped = {"type": "infer", "request_id": "r1", "payload": {"lang": "go", "seed": 3}}
    listed = {"examples": [{"lang": "go", "state": [1.0]}], "unnorm_key": "x", "seed": 4}
    nested = {"type": "infer", "payload": {"examples": [{"lang": "go", "seed": 5}]}}
    assert (call(wrapped).observation, call(wrapped).seed) == ({"lang": "go"}, 3)
    assert call(wrapped).addressee.request_id == "r1"
    assert (call(listed).observation, call(listed).seed) == ({"lang": "go", "state": [1.0]}, 4)
    assert (call(nested).observation, call(nested).seed) == ({"lang": "go"}, 5)


@pytest.mark.parametrize(
    ("message", "path", "said"),
    [
        ({"endpoint": "infre"}, "/", "endpoint: 'infre' came, expected 'infer' or 'reset'"),
        ({"endpoint": ["reset"]}, VLLM_OMNI_PATH, "endpoint: list came"),
        ({"endpoint": None}, "/", "endpoint: NoneType came"),
        ({"type": "kill", "payload": {}}, "/", "type: 'kill' came, expected one of"),
        ({"type": 1, "payload": {}}, "/", "type: 1 came"),
        ({"type": "infer", "payload": [1]}, "/", "payload: list came, expected a map"),
        ({"examples": [{}, {}]}, "/", "examples: what came is not a list of one map"),
        ({"examples": [1]}, "/", "examples: what came is not a list of one map"),
        ({"payload": {"examples": "e"}}, "/", "examples: what came is not a list of one map"),
        ({"seed": -1}, "/", "seed: -1 came, expected 0 to 9223372036854775807"),
        ({"seed": 2**63}, "/", "seed: 9223372036854775808 came"),
        ({"seed": True}, "/", "seed: True came"),
        ({"seed": 1.0}, "/", "seed: float came"),
        ({"seed": np.zeros(2, int)}, "/", "seed: ndarray came"),
        ({"session_id": {"a": 1}}, "/", "session_id: dict came, expected a text or a number"),
        ({"session_id": "s" * 1025}, "/", "session_id: 1025 bytes came, expected at most 1024"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(message, path, said):
    with pytest.raises(InvalidRequestError) as refused:
        call(message, path)
    assert said in refused.value.message


@pytest.mark.parametrize(("seed", "read"), [(0, 0), (2**63 - 1, 2**63 - 1), (np.array([9]), 9), (None, None)])
def test_seeds_are_numbers_alone_or_in_an_array(seed, read):
    assert call({"seed": seed}).seed == read


def test_sessions_are_digests_that_differ():
    ids = ("a", "b", 1, 2, np.array([1], np.int32), np.array([2], np.int32))
    sessions = [call({"session_id": session_id}).session for session_id in ids]
    assert len(set(sessions)) == len(ids)
    assert all(len(session) == 16 for session in sessions)
    assert call({"session_id": "a"}).session == sessions[0]
    assert call({}).session == call({"session_id": None}).session == ""


def reply(dialect, **changes):
    addressee = Addressee(dialect=dialect, request_id="r1")
    return msgpack_numpy.unpackb(chunk_frame(addressee, ChunkReply(**{**vars(REPLY), **changes})))


@pytest.mark.parametrize("dialect", [Dialect.OPENPI, Dialect.ROBOARENA])
def test_openpi_and_roboarena_get_a_map_of_the_chunk_and_its_times(dialect):
    first = reply(dialect)
    np.testing.assert_array_equal(first.pop("actions"), REPLY.actions)
    assert first == {
        "server_timing": {"infer_ms": 3.0},
        "policy_timing": {"infer_ms": 2.0},
        "revision": "abc",
        "seed": 7,
    }
    assert reply(dialect, prev_total_ms=4.0)["server_timing"] == {"infer_ms": 3.0, "prev_total_ms": 4.0}
    assert "action" in reply(dialect, actions_key="action")


def test_vllm_omni_gets_the_bare_array():
    np.testing.assert_array_equal(reply(Dialect.VLLM_OMNI), REPLY.actions)


def test_starvla_gets_a_batch_of_one_beside_its_request_id():
    answer = reply(Dialect.STARVLA)
    np.testing.assert_array_equal(answer["data"].pop("actions"), REPLY.actions[None])
    assert answer["data"]["server_timing"] == {"infer_ms": 3.0}
    assert (answer["status"], answer["ok"], answer["type"]) == ("ok", True, "inference_result")
    assert answer["request_id"] == "r1"


def test_a_reset_is_confirmed_in_each_dialects_words():
    assert done_frame(call({"endpoint": "reset"})) == "reset successful"
    vllm_omni = done_frame(call({"endpoint": "reset"}, VLLM_OMNI_PATH))
    assert msgpack_numpy.unpackb(vllm_omni) == {"status": "reset successful"}
    for verb in ("reset", "ping"):
        starvla = msgpack_numpy.unpackb(done_frame(call({"type": verb, "request_id": 5})))
        assert starvla == {"status": "ok", "ok": True, "type": verb, "request_id": 5}


def test_an_error_is_a_text_or_in_band():
    for dialect in (Dialect.OPENPI, Dialect.ROBOARENA):
        assert error_frame(Addressee(dialect=dialect), ERROR) == "INVALID_ARGUMENT: state: none came"
    assert msgpack_numpy.unpackb(error_frame(Addressee(dialect=Dialect.VLLM_OMNI), ERROR)) == {
        "type": "error",
        "message": "state: none came",
        "code": "INVALID_ARGUMENT",
    }
    assert msgpack_numpy.unpackb(error_frame(Addressee(dialect=Dialect.STARVLA, request_id="r1"), ERROR)) == {
        "status": "error",
        "ok": False,
        "type": "inference_result",
        "request_id": "r1",
        "error": {"message": "state: none came", "code": "INVALID_ARGUMENT"},
    }


@pytest.mark.parametrize("request_id", ["r" * 129, None, 1.5, [1], np.zeros(3)])
def test_only_a_short_request_id_is_echoed(request_id):
    assert find_addressee({"type": "infer", "request_id": request_id}, path="/").request_id == "default"
