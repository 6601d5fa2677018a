"""A robot's observation, in its own keys, to the request that PredictChunk takes.

Owns finding the mapped values and bringing them to our types; what it refuses is named by the robot's key. Does not own
whether they fit the policy: the gateway checks the request as it checks everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from premotor.v1 import policy_pb2
from premotor.wire import encode_image, encode_tensor
from service.errors import InvalidRequestError, nearest_name, quoted
from service.openpi.observation_map import ObservationMap

# Of the keys that came, when the right one is missing: the search for the nearest takes time that the caller chooses.
_MAX_NAMED_KEYS = 32
_MAX_NAMED_CHARS = 64


def fill_observation(
    request: policy_pb2.PredictChunkRequest, entries: Mapping[str | bytes, Any], observation_map: ObservationMap
) -> None:
    """Puts images, state and instruction into `request`. Raises InvalidRequestError."""
    observation = request.observation
    for camera, key in observation_map.images.items():
        observation.images[camera].CopyFrom(encode_image(_frame(_find(entries, key), key)))
    parts = [_numbers(_find(entries, key), key) for key in observation_map.state]
    with np.errstate(over="ignore"):  # to infinity, which the gateway refuses with the number's place
        state = np.concatenate(parts).astype(np.float32)
    observation.state.CopyFrom(encode_tensor(state))
    observation.instruction = _text(_find(entries, observation_map.instruction), observation_map.instruction)


def _find(entries: Mapping[str | bytes, Any], key: str) -> Any:
    try:
        return _along(entries, key)
    except LookupError:
        raise InvalidRequestError(_field(key), _missing(entries, key)) from None


def _along(found: Any, path: str) -> Any:
    """What lies under `path` itself, or along it through maps and lists. Raises LookupError."""
    if isinstance(found, dict) and path in found:
        return found[path]
    if isinstance(found, list) and path.isdecimal():
        return found[int(path)]
    head, separator, rest = path.partition("/")
    if not separator:
        raise LookupError
    return _along(_along(found, head), rest)


def _missing(entries: Mapping[str | bytes, Any], key: str) -> str:
    came = [name[:_MAX_NAMED_CHARS] for name in list(entries)[:_MAX_NAMED_KEYS] if isinstance(name, str)]
    nearest = nearest_name(key, came)
    return "none came" if nearest is None else f"none came; the nearest key that came is {quoted(nearest)}"


def _frame(value: Any, key: str) -> np.ndarray:
    """uint8 [height, width, 3] of a frame in either order of dimensions."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        if value.shape[2] == 3:
            return value
        if value.shape[0] == 3:
            return np.stack(tuple(value), axis=-1)  # a third of the time that a transposed copy takes
    raise InvalidRequestError(
        _field(key),
        f"{_kind(value)} came, expected uint8 [height, width, 3] or [3, height, width]; "
        "openpi_client.image_tools.convert_to_uint8 makes uint8 of floats in [0, 1]",
    )


def _numbers(value: Any, key: str) -> np.ndarray:
    """[num_dimensions] of one number, a list of them, a vector or a matrix of one row."""
    numbers = value if isinstance(value, np.ndarray) else _array_of_numbers(value)
    if numbers is not None and numbers.dtype.kind in "iuf" and numbers.ndim <= 2:
        if numbers.ndim == 2 and numbers.shape[0] == 1:
            return numbers[0]
        if numbers.ndim < 2:
            return numbers.reshape(-1)
    raise InvalidRequestError(_field(key), f"{_kind(value)} came, expected numbers [num_dimensions]")


def _array_of_numbers(value: Any) -> np.ndarray | None:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(number) in (int, float) for number in numbers):
        return None
    return np.array(numbers, np.float64)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(_field(key), f"{_kind(value)} came, expected a text")
    return value


def _field(key: str) -> str:
    return f"observation[{quoted(key)}]"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {list(value.shape)}"
    return "none" if value is None else type(value).__name__
