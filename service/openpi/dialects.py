"""Four ways of saying the same: openpi's own wire and what others have made of it.

Owns telling them apart, what a message asks for, and the form of each reply. Does not own bytes (wire.py), the
observation (observations.py) or the answer. Told apart by content, because a robot connects before it says anything;
vLLM-Omni's alone has a path of its own.

    dialect    asks                                        chunk                       reset            error
    openpi     flat observation                            map                         -                text
    roboarena  endpoint: infer | reset, session_id         map                         text             text
    vllm-omni  the same, endpoint left out for infer       array                       map              map
    starvla    type, request_id, payload; or examples      map with data, [1, H, D]    map              map
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import grpc
import numpy as np

from premotor.v1 import policy_pb2
from service.errors import InvalidRequestError, quoted
from service.gateway.validation import MAX_SEED
from service.openpi.observation_map import RESERVED_KEYS
from service.openpi.wire import pack

VLLM_OMNI_PATH = "/v1/realtime/robot/openpi"
Entries = Mapping[str | bytes, Any]

_RESET_DONE = "reset successful"
_MAX_ECHO_CHARS = 128
_MAX_SESSION_BYTES = 1024
_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class Dialect(StrEnum):
    OPENPI = "openpi"
    ROBOARENA = "roboarena"
    VLLM_OMNI = "vllm-omni"
    STARVLA = "starvla"


class Verb(StrEnum):
    INFER = "infer"
    RESET = "reset"
    PING = "ping"


_STARVLA_VERBS = {"infer": Verb.INFER, "predict_action": Verb.INFER, "reset": Verb.RESET, "ping": Verb.PING}
_STARVLA_RESULTS = {Verb.INFER: "inference_result", Verb.RESET: "reset", Verb.PING: "ping"}


@dataclass(frozen=True, kw_only=True)
class Addressee:
    """Who gets a reply, known before the rest of a message has been understood."""

    dialect: Dialect
    # starVLA's, echoed.
    request_id: str | int = "default"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One message, understood; its observation is still in the robot's keys."""

    addressee: Addressee
    verb: Verb
    observation: Entries
    # A digest; empty when the robot named none.
    session: str
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class ChunkReply:
    """What every dialect makes its chunk of. Spans in milliseconds, as the wire has them."""

    # float32 [action_horizon, action_dim]
    actions: np.ndarray
    actions_key: str
    revision: str
    seed: int
    infer_ms: float
    policy_infer_ms: float
    # Of the exchange before; None in the first.
    prev_total_ms: float | None


def find_addressee(message: Entries, *, path: str) -> Addressee:
    if path == VLLM_OMNI_PATH:
        return Addressee(dialect=Dialect.VLLM_OMNI)
    if "endpoint" in message:
        return Addressee(dialect=Dialect.ROBOARENA)
    if "payload" in message or _starvla_verb(message) is not None or isinstance(message.get("examples"), list):
        request_id = message.get("request_id")
        if isinstance(request_id, int) or (isinstance(request_id, str) and len(request_id) <= _MAX_ECHO_CHARS):
            return Addressee(dialect=Dialect.STARVLA, request_id=request_id)
        return Addressee(dialect=Dialect.STARVLA)
    return Addressee(dialect=Dialect.OPENPI)


def read_call(message: Entries, addressee: Addressee) -> Call:
    """Raises InvalidRequestError."""
    if addressee.dialect is Dialect.STARVLA:
        verb = _starvla_verb(message) if "type" in message else Verb.INFER
        if verb is None:
            raise InvalidRequestError("type", f"{_said(message['type'])} came, expected one of {[*_STARVLA_VERBS]}")
        message = _starvla_payload(message)
    else:
        endpoint = message.get("endpoint", "infer")
        if not isinstance(endpoint, str) or endpoint not in ("infer", "reset"):
            raise InvalidRequestError("endpoint", f"{_said(endpoint)} came, expected 'infer' or 'reset'")
        verb = Verb(endpoint)
    return Call(
        addressee=addressee,
        verb=verb,
        observation={key: value for key, value in message.items() if key not in RESERVED_KEYS},
        session=_session(message.get("session_id")),
        seed=_seed(message.get("seed")),
    )


def chunk_frame(addressee: Addressee, reply: ChunkReply) -> bytes:
    if addressee.dialect is Dialect.VLLM_OMNI:
        return pack(reply.actions)
    server_timing = {"infer_ms": reply.infer_ms}
    if reply.prev_total_ms is not None:
        server_timing["prev_total_ms"] = reply.prev_total_ms
    starvla = addressee.dialect is Dialect.STARVLA
    result = {
        # starVLA's robots send a batch and take its first chunk.
        reply.actions_key: reply.actions[np.newaxis] if starvla else reply.actions,
        "server_timing": server_timing,
        "policy_timing": {"infer_ms": reply.policy_infer_ms},
        "revision": reply.revision,
        "seed": reply.seed,
    }
    return pack(_starvla_reply(addressee, Verb.INFER, data=result) if starvla else result)


def done_frame(call: Call) -> bytes | str:
    """The reply to what asks for no chunk."""
    if call.addressee.dialect is Dialect.STARVLA:
        return pack(_starvla_reply(call.addressee, call.verb))
    return pack({"status": _RESET_DONE}) if call.addressee.dialect is Dialect.VLLM_OMNI else _RESET_DONE


def error_frame(addressee: Addressee, error: policy_pb2.RequestError) -> bytes | str:
    code = _STATUS_NAMES[error.code]
    if addressee.dialect is Dialect.VLLM_OMNI:
        return pack({"type": "error", "message": error.message, "code": code})
    if addressee.dialect is Dialect.STARVLA:
        return pack(
            {
                "status": "error",
                "ok": False,
                "type": _STARVLA_RESULTS[Verb.INFER],
                "request_id": addressee.request_id,
                "error": {"message": error.message, "code": code},
            }
        )
    # openpi's client raises what comes as a text; a dict would reach a robot that looks for actions in it.
    return f"{code}: {error.message}"


def _starvla_verb(message: Entries) -> Verb | None:
    kind = message.get("type")
    return _STARVLA_VERBS.get(kind) if isinstance(kind, str) else None


def _starvla_payload(message: Entries) -> Entries:
    payload = message.get("payload", message)
    if not isinstance(payload, dict):
        raise InvalidRequestError("payload", f"{type(payload).__name__} came, expected a map")
    examples = payload.get("examples")
    if examples is None:
        return payload
    if not (isinstance(examples, list) and len(examples) == 1 and isinstance(examples[0], dict)):
        raise InvalidRequestError("examples", "what came is not a list of one map: one robot, one observation")
    return {**{key: payload[key] for key in RESERVED_KEYS if key in payload}, **examples[0]}


def _starvla_reply(addressee: Addressee, verb: Verb, **result: Any) -> dict[str, Any]:
    return {
        "status": "ok",
        "ok": True,
        "type": _STARVLA_RESULTS[verb],
        "request_id": addressee.request_id,
        **result,
    }


def _session(value: Any) -> str:
    """A digest of what names a session, a text or a number or an array of one; empty for none."""
    if value is None:
        return ""
    if not isinstance(value, str | int | np.ndarray):
        raise InvalidRequestError("session_id", f"{type(value).__name__} came, expected a text or a number")
    content = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
    if len(content) > _MAX_SESSION_BYTES:
        raise InvalidRequestError("session_id", f"{len(content)} bytes came, expected at most {_MAX_SESSION_BYTES}")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _seed(value: Any) -> int | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size == 1:
        value = int(value.reshape(-1)[0])
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise InvalidRequestError("seed", f"{_said(value)} came, expected 0 to {MAX_SEED}")
    return value


def _said(value: Any) -> str:
    """A caller's value as a message may show it."""
    return quoted(value) if isinstance(value, str) else str(value) if isinstance(value, int) else type(value).__name__
