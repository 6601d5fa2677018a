"""numpy array <-> Tensor.

Owns element types, row-major little-endian layout and the size checks, all made before anything is allocated. Does not
own what a tensor means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from premotor.v1 import policy_pb2
from premotor.wire.errors import WireError

MAX_ELEMENTS = 64 * 1024 * 1024
MAX_DIMENSIONS = 8
_LITTLE_ENDIAN = {
    policy_pb2.Tensor.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    policy_pb2.Tensor.DATA_TYPE_UINT8: np.dtype("u1"),
}
_DATA_TYPES = {dtype.type: data_type for data_type, dtype in _LITTLE_ENDIAN.items()}


def encode_tensor(array: np.ndarray, *, field: str = "tensor") -> policy_pb2.Tensor:
    """The message for a float32 or uint8 array of at least one dimension, in any memory layout.

    Raises WireError for any other element type: narrowing float64 is the caller's decision.
    """
    data_type = _DATA_TYPES.get(array.dtype.type)
    if data_type is None:
        known = " or ".join(dtype.name for dtype in _LITTLE_ENDIAN.values())
        raise WireError(field, f"elements are {array.dtype.name}, expected {known}")
    if not 1 <= array.ndim <= MAX_DIMENSIONS:
        raise WireError(field, f"{array.ndim} dimensions, expected 1 to {MAX_DIMENSIONS}")
    data = array.astype(_LITTLE_ENDIAN[data_type], copy=False).tobytes()
    return policy_pb2.Tensor(data_type=data_type, shape=array.shape, data=data)


def decode_tensor(
    tensor: policy_pb2.Tensor,
    *,
    field: str,
    dtype: type[np.float32 | np.uint8],
    shape: Sequence[int | None],
    max_elements: int = MAX_ELEMENTS,
) -> np.ndarray:
    """The array a message holds, read-only, of `dtype` and `shape`, where None accepts any extent.

    Raises WireError when the message declares another type or shape, more than `max_elements` elements, or holds
    another number of bytes than it declares.
    """
    expected_type = _DATA_TYPES[dtype]
    if tensor.data_type != expected_type:
        raise WireError(f"{field}.data_type", f"{_name(tensor.data_type)} came, expected {_name(expected_type)}")
    extents = _checked_extents(tensor, field=field, shape=shape, max_elements=max_elements)
    little_endian = _LITTLE_ENDIAN[expected_type]
    num_bytes = _product(extents) * little_endian.itemsize
    data = tensor.data
    if len(data) != num_bytes:
        raise WireError(
            f"{field}.data", f"{len(data)} bytes came, shape {list(extents)} of {little_endian.name} needs {num_bytes}"
        )
    array = np.frombuffer(data, little_endian).reshape(extents)
    return array.astype(dtype, copy=False)


def require_finite(array: np.ndarray, *, field: str) -> None:
    """Raises WireError naming the first element that is NaN or infinite."""
    finite = np.isfinite(array)
    if finite.all():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
    count = int(finite.size - np.count_nonzero(finite))
    raise WireError(field, f"element {list(index)} is {array[index]} ({count} in all), expected finite numbers")


def _checked_extents(
    tensor: policy_pb2.Tensor, *, field: str, shape: Sequence[int | None], max_elements: int
) -> tuple[int, ...]:
    if len(tensor.shape) != len(shape):
        # The list itself may be the attack, so only its length is printed.
        raise WireError(f"{field}.shape", f"{len(tensor.shape)} dimensions came, expected {_listed(shape)}")
    extents = tuple(tensor.shape)
    for extent, want in zip(extents, shape, strict=True):
        if extent < 0:
            raise WireError(f"{field}.shape", f"{list(extents)} came, expected no negative extent")
        if want is not None and extent != want:
            raise WireError(f"{field}.shape", f"{list(extents)} came, expected {_listed(shape)}")
    # A zero extent hides the others from the product, and numpy refuses huge ones even then.
    if max(_product(extents), *extents) > max_elements:
        raise WireError(f"{field}.shape", f"{list(extents)} came, expected at most {max_elements} elements")
    return extents


def _listed(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if extent is None else str(extent) for extent in shape) + "]"


def _product(extents: Sequence[int]) -> int:
    product = 1
    for extent in extents:
        product *= extent
    return product


def _name(data_type: int) -> str:
    names = policy_pb2.Tensor.DataType
    return names.Name(data_type) if data_type in names.values() else f"data type {data_type}"
