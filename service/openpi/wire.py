"""msgpack with openpi's numpy extension: one frame <-> one message.

Owns the bytes: markers, element types, and the caps that hold before anything is allocated. Does not own what a message
means (dialects.py, observations.py). An array is a map of the bytes keys `__ndarray__`, `data`, `dtype` and `shape`, a
numpy scalar one of `__npgeneric__`, `data` and `dtype`; neither is ever an object, so nothing that is read is run.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from service.errors import InvalidRequestError, quoted
from service.openpi.limits import OpenpiLimits

# As numpy writes them. Given a free text, np.dtype would also build records and subarrays of any size.
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAX_DIMENSIONS = 8
_ARRAY_KEYS = frozenset({b"__ndarray__", b"data", b"dtype", b"shape"})
_SCALAR_KEYS = frozenset({b"__npgeneric__", b"data", b"dtype"})


def pack(message: Any) -> bytes:
    """The frame of a message of dicts, lists, texts, numbers and numpy arrays of numbers."""
    frame = msgpack.packb(message, default=_encode_array)
    assert frame is not None  # as it is for packers that keep what they packed
    return frame


def unpack(frame: bytes, limits: OpenpiLimits) -> Any:
    """The message of a frame; its arrays are read-only views. Raises InvalidRequestError."""
    entries = _Entries(limits.max_entries)
    try:
        message = msgpack.unpackb(
            frame,
            object_pairs_hook=entries.take_map,
            list_hook=entries.take_list,
            # Both are allocated by their declared length, before their elements have come.
            max_array_len=limits.max_entries,
            max_map_len=limits.max_entries,
            max_ext_len=0,
        )
    except ValueError as error:
        # msgpack says nothing when bytes are none of its, or are nested too deeply even for its own stack.
        reason = str(error) or "broken, or nested too deeply"
        raise InvalidRequestError("", f"a frame that is no msgpack message came: {reason}") from None
    _check_depth(message, limits.max_depth)
    return message


class _Entries:
    """Counts what a frame holds while it is read: containers come whole, the innermost first."""

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0

    def take_list(self, elements: list[Any]) -> list[Any]:
        self._add(len(elements))
        return elements

    def take_map(self, pairs: list[tuple[str | bytes, Any]]) -> Any:
        self._add(2 * len(pairs))
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise InvalidRequestError("", "a map with a repeated key came")
        if b"__ndarray__" in entries:
            return _decode_array(entries)
        if b"__npgeneric__" in entries:
            return _decode_scalar(entries)
        return entries

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > self._most:
            raise InvalidRequestError("", f"more than {self._most} entries came, the most that a frame may have")


def _encode_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray) or _NUMBERS.fullmatch(value.dtype.str) is None:
        raise TypeError(f"{type(value).__name__} has no form on this wire, expected an array of numbers")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decode_array(entries: dict[str | bytes, Any]) -> np.ndarray:
    dtype = _dtype(entries, _ARRAY_KEYS)
    data, shape = entries[b"data"], entries[b"shape"]
    if not isinstance(data, bytes):
        raise InvalidRequestError("", f"an array whose data is {type(data).__name__} came, expected bytes")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(type(extent) is int for extent in shape):
        raise InvalidRequestError("", f"an array's shape came that is no list of at most {_MAX_DIMENSIONS} extents")
    # An extent of 0 would hide the others from the product.
    if any(extent < 1 for extent in shape):
        raise InvalidRequestError("", f"an array of shape {shape} came, expected at least one element")
    num_bytes = math.prod(shape) * dtype.itemsize
    if len(data) != num_bytes:
        raise InvalidRequestError(
            "", f"an array of {len(data)} bytes came, shape {shape} of {dtype.name} needs {num_bytes}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_scalar(entries: dict[str | bytes, Any]) -> bool | int | float:
    _dtype(entries, _SCALAR_KEYS)
    value = entries[b"data"]
    if not isinstance(value, bool | int | float):
        raise InvalidRequestError("", f"a numpy scalar whose data is {type(value).__name__} came, expected a number")
    return value


def _dtype(entries: dict[str | bytes, Any], expected: frozenset[bytes]) -> np.dtype:
    if entries.keys() != expected:
        names = [key.decode() for key in sorted(expected)]
        raise InvalidRequestError("", f"a numpy marker with other keys came, expected the bytes keys {names}")
    dtype = entries[b"dtype"]
    if not isinstance(dtype, str) or _NUMBERS.fullmatch(dtype) is None:
        came = quoted(dtype) if isinstance(dtype, str) else type(dtype).__name__
        raise InvalidRequestError("", f"elements of dtype {came} came, expected bool, int, uint or float")
    return np.dtype(dtype)


def _check_depth(message: Any, most: int) -> None:
    if not isinstance(message, dict | list):
        return
    if most == 0:
        raise InvalidRequestError("", "a message that is nested too deeply came")
    for value in message.values() if isinstance(message, dict) else message:
        _check_depth(value, most - 1)
