"""Requests that no robot would send: whole ones, changed at random until they are nearly always wrong.

Owns the changes, on both wires. Does not own who sends them nor what must come back (fuzz.py). Everything is drawn from
the generator that is given, so that a seed says which request it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from premotor.v1 import policy_pb2
from service.openpi.wire import pack

Request = policy_pb2.PredictChunkRequest
Metadata = tuple[tuple[str, str | bytes], ...]

_EXTENTS = (-(2**63), -1, 0, 1, 2, 3, 9, 224, 4096, 2**31, 2**40, 2**63 - 1)
_NUMBERS = (-(2**31), -1, 0, 1, 33, 2**31 - 1)
_FLOATS = (float("nan"), float("inf"), float("-inf"), 1e38, -0.0)
_TEXTS = ("", " \t\n", "a" * 2000, "é" * 200, "../../etc/passwd", "\x00", "tabletop", "%s%n", "☃", "'; DROP TABLE")
_DTYPES = ("O", "V8", "<f4", "<f8", "|u1", "<i8", "<U4", "f4,f4", "<M8[s]", "x" * 300)
_FILE_HEADS = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", b"GIF89a", b"RIFF\xff\xff\xff\xffWEBP")


def mutated_request(generator: random.Random, request: Request) -> bytes:
    """A PredictChunkRequest, serialised; one change in four is to the bytes themselves."""
    if generator.random() < 0.25:
        return _damaged(generator, request.SerializeToString())
    changed = Request()
    changed.CopyFrom(request)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        generator.choice(_REQUEST_CHANGES)(generator, changed)
    return changed.SerializeToString()


def random_metadata(generator: random.Random) -> Metadata:
    """What a call brings along beside its message; for most calls nothing."""
    if generator.random() < 0.7:
        return ()
    names = ("authorization", "traceparent", "tracestate", "x-robot", "x-blob-bin", "premotor-error-bin", "user")
    entries: list[tuple[str, str | bytes]] = []
    for _ in range(generator.randrange(1, 5)):
        name = generator.choice(names)
        if name.endswith("-bin"):
            entries.append((name, generator.randbytes(generator.randrange(200))))
        else:
            # Printable ASCII: more is refused by gRPC on the robot's own side.
            entries.append((name, "".join(chr(generator.randrange(0x20, 0x7F)) for _ in range(60)).strip()))
    return tuple(entries)


def mutated_frame(generator: random.Random, message: Mapping[str, Any]) -> bytes | str:
    """A frame for openpi's wire; one in four is no longer what msgpack made of its message."""
    chance = generator.random()
    if chance < 0.02:
        return generator.choice(_TEXTS)
    if chance < 0.25:
        return _damaged(generator, pack(message))
    changed: dict[Any, Any] = dict(message)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        generator.choice(_MESSAGE_CHANGES)(generator, changed)
    return pack(changed)


def _damaged(generator: random.Random, content: bytes) -> bytes:
    damage = generator.randrange(4)
    if damage == 0:
        return content[: generator.randrange(len(content))]
    if damage == 1:
        return generator.randbytes(generator.randrange(400))
    if damage == 2:
        at = generator.randrange(len(content))
        return content[:at] + generator.randbytes(generator.randrange(1, 16)) + content[at:]
    flipped = bytearray(content)
    # The first bytes say how the rest is to be read: as likely as all others together.
    reach = generator.choice((min(64, len(flipped)), len(flipped)))
    for _ in range(generator.choice((1, 1, 8))):
        flipped[generator.randrange(reach)] ^= generator.randrange(1, 256)
    return bytes(flipped)


def _tensor(generator: random.Random) -> policy_pb2.Tensor:
    """Type, extents and bytes are drawn apart from each other."""
    shape = [generator.choice(_EXTENTS) for _ in range(generator.choice((0, 1, 1, 2, 3, 3, 9)))]
    data_type: Any = generator.randrange(4)
    return policy_pb2.Tensor(data_type=data_type, shape=shape, data=generator.randbytes(generator.choice((0, 4, 36))))


def _put_name(generator: random.Random, request: Request) -> None:
    name = generator.choice(
        ("policy", "revision", "robot_id", "episode_id", "request_id", "embodiment", "episode_revision")
    )
    setattr(request, name, generator.choice(_TEXTS))


def _put_number(generator: random.Random, request: Request) -> None:
    setattr(request, generator.choice(("num_inference_steps", "seed", "num_underruns")), generator.choice(_NUMBERS))


def _put_instruction(generator: random.Random, request: Request) -> None:
    request.observation.instruction = generator.choice(_TEXTS)


def _put_capture_time(generator: random.Random, request: Request) -> None:
    request.observation.capture_time.seconds = generator.choice(_EXTENTS)
    request.observation.capture_time.nanos = generator.choice(_NUMBERS)


def _put_state(generator: random.Random, request: Request) -> None:
    request.observation.state.CopyFrom(_tensor(generator))


def _spoil_state(generator: random.Random, request: Request) -> None:
    state = np.frombuffer(request.observation.state.data, np.float32).copy()
    if state.size:
        state[generator.randrange(state.size)] = generator.choice(_FLOATS)
        request.observation.state.data = state.tobytes()


def _put_history(generator: random.Random, request: Request) -> None:
    request.history.states.CopyFrom(_tensor(generator))
    if generator.random() < 0.5:
        request.history.actions.CopyFrom(_tensor(generator))
    if generator.random() < 0.5:
        request.history.num_valid_steps = generator.choice(_NUMBERS)


def _put_image(generator: random.Random, request: Request) -> None:
    images = request.observation.images
    image = images[generator.choice((*images, *_TEXTS))]
    if generator.random() < 0.4:
        image.pixels.CopyFrom(_tensor(generator))
    else:
        image.compressed = generator.choice(_FILE_HEADS) + generator.randbytes(generator.randrange(200))


def _damage_image(generator: random.Random, request: Request) -> None:
    images = request.observation.images
    if images:
        image = images[generator.choice(sorted(images))]
        if image.compressed:
            image.compressed = _damaged(generator, image.compressed)


def _drop(generator: random.Random, request: Request) -> None:
    images = request.observation.images
    if images and generator.random() < 0.5:
        del images[generator.choice(sorted(images))]
    else:
        request.ClearField(generator.choice(("observation", "policy", "robot_id", "request_id", "embodiment")))


_REQUEST_CHANGES: tuple[Callable[[random.Random, Request], None], ...] = (
    _put_name,
    _put_number,
    _put_instruction,
    _put_capture_time,
    _put_state,
    _spoil_state,
    _put_history,
    _put_image,
    _damage_image,
    _drop,
)


def _array(generator: random.Random) -> np.ndarray:
    dtype = generator.choice(("<f4", "<f8", "<f2", "|u1", "<i8", "|b1"))
    shape = [generator.choice((1, 2, 3, 9, 64)) for _ in range(generator.randrange(4))]
    with np.errstate(over="ignore"):
        return np.full(shape, generator.choice((0, 1, 200)), dtype)


def _claimed_array(generator: random.Random) -> dict[bytes, Any]:
    """An array by its marker, which need not hold what it says."""
    claimed: dict[bytes, Any] = {
        b"__ndarray__": True,
        b"data": generator.randbytes(generator.choice((0, 4, 36))),
        b"dtype": generator.choice(_DTYPES),
        b"shape": [generator.choice(_EXTENTS) for _ in range(generator.choice((0, 1, 2, 3, 40)))],
    }
    if generator.random() < 0.3:
        del claimed[generator.choice((b"data", b"dtype", b"shape"))]
    return claimed


def _nested(generator: random.Random) -> Any:
    value: Any = 1
    for _ in range(generator.choice((3, 9, 100))):
        value = [value] if generator.random() < 0.5 else {"examples": value}
    return value


def _value(generator: random.Random) -> Any:
    make: Callable[[random.Random], Any] = generator.choice(
        (
            _array,
            _claimed_array,
            _nested,
            lambda drawn: drawn.choice(_TEXTS),
            lambda drawn: drawn.choice(_EXTENTS),
            lambda drawn: drawn.choice(_FLOATS),
            lambda drawn: drawn.choice((None, True, b"", [], {}, [[]], [{}])),
            lambda drawn: [0] * drawn.choice((7, 5000)),
        )
    )
    return make(generator)


def _replace_value(generator: random.Random, message: dict[Any, Any]) -> None:
    if message:
        message[generator.choice(list(message))] = _value(generator)


def _remove_key(generator: random.Random, message: dict[Any, Any]) -> None:
    if message:
        del message[generator.choice(list(message))]


def _add_key(generator: random.Random, message: dict[Any, Any]) -> None:
    """One that some dialect gives a meaning, or none."""
    names = ("endpoint", "session_id", "seed", "mode", "type", "request_id", "payload", "examples", *_TEXTS)
    verbs = ("infer", "reset", "ping", "predict_action")
    message[generator.choice(names)] = generator.choice(verbs) if generator.random() < 0.3 else _value(generator)


def _claim_numpy_scalar(generator: random.Random, message: dict[Any, Any]) -> None:
    message["observation/state"] = {
        b"__npgeneric__": True,
        b"data": _value(generator),
        b"dtype": generator.choice(_DTYPES),
    }


_MESSAGE_CHANGES: tuple[Callable[[random.Random, dict[Any, Any]], None], ...] = (
    _replace_value,
    _replace_value,
    _remove_key,
    _add_key,
    _claim_numpy_scalar,
)
