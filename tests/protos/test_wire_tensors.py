"""Arrays survive the wire bit for bit, and no message makes the decoder do anything but decode or refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from premotor.v1 import policy_pb2
from premotor.wire import WireError, decode_tensor, encode_tensor, require_finite

DTYPES = st.sampled_from([np.float32, np.uint8])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=5)


@given(DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
def test_an_array_survives_the_wire_bit_for_bit(array: np.ndarray) -> None:
    message = policy_pb2.Tensor.FromString(encode_tensor(array).SerializeToString())
    decoded = decode_tensor(message, field="state", dtype=array.dtype.type, shape=(None,) * array.ndim)
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()
    assert not decoded.flags.writeable


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=4), elements=st.floats(-1, 1, width=32))
)
def test_memory_layout_and_byte_order_do_not_reach_the_wire(array: np.ndarray) -> None:
    expected = encode_tensor(array)
    assert encode_tensor(np.asfortranarray(array)) == expected
    assert encode_tensor(array.astype(">f4")) == expected
    assert encode_tensor(array[::-1].copy()[::-1]) == expected


def test_the_bytes_are_row_major_and_little_endian() -> None:
    message = encode_tensor(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    assert list(message.shape) == [2, 2]
    assert message.data == b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40"


@given(
    st.integers(-1, 4),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3), max_size=70),
    st.binary(max_size=64),
    DTYPES,
    st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=4),
)
def test_any_message_is_decoded_or_refused(
    data_type: int, shape: list[int], data: bytes, dtype: type, expected: list[int | None]
) -> None:
    message = policy_pb2.Tensor(data_type=data_type, shape=shape, data=data)  # pyright: ignore[reportArgumentType]
    try:
        array = decode_tensor(message, field="state", dtype=dtype, shape=expected)
    except WireError as error:
        assert error.field.startswith("state.")
        assert len(str(error)) < 500
    else:
        assert array.nbytes == len(data)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_UINT8, shape=[4], data=b"1234"),
            "state.data_type: DATA_TYPE_UINT8 came, expected DATA_TYPE_FLOAT32",
        ),
        (policy_pb2.Tensor(), "state.data_type: DATA_TYPE_UNSPECIFIED came, expected DATA_TYPE_FLOAT32"),
        (
            policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_FLOAT32, data=b"1234"),
            "state.shape: 0 dimensions came, expected [4]",
        ),
        (
            policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_FLOAT32, shape=[-4], data=b"1234"),
            "state.shape: [-4] came, expected no negative extent",
        ),
        (
            policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_FLOAT32, shape=[3], data=b"1234" * 3),
            "state.shape: [3] came, expected [4]",
        ),
        (
            policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_FLOAT32, shape=[4], data=b"1234" * 3),
            "state.data: 12 bytes came, shape [4] of float32 needs 16",
        ),
    ],
)
def test_a_refusal_says_which_field_what_came_and_what_was_expected(message: policy_pb2.Tensor, error: str) -> None:
    with pytest.raises(WireError) as refusal:
        decode_tensor(message, field="state", dtype=np.float32, shape=(4,))
    assert str(refusal.value) == error


@pytest.mark.parametrize("shape", [[2**62, 4], [2**40, 0], [1025, 1]])
def test_a_shape_beyond_the_cap_is_refused_whatever_its_data(shape: list[int]) -> None:
    message = policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_FLOAT32, shape=shape)
    with pytest.raises(WireError, match="expected at most 1024 elements"):
        decode_tensor(message, field="history.states", dtype=np.float32, shape=(None, None), max_elements=1024)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros(3, np.int64), np.zeros(3, bool), np.array(["a"])])
def test_element_types_that_the_wire_does_not_have_are_refused(array: np.ndarray) -> None:
    with pytest.raises(WireError, match="expected float32 or uint8"):
        encode_tensor(array)


def test_a_scalar_is_refused() -> None:
    with pytest.raises(WireError, match="0 dimensions"):
        encode_tensor(np.float32(1.0).reshape(()))


def test_the_first_element_that_is_not_finite_is_named() -> None:
    require_finite(np.zeros((2, 3), np.float32), field="state")
    require_finite(np.zeros((0, 3), np.float32), field="state")
    with pytest.raises(WireError, match=r"^state: element \[1, 0\] is nan \(2 in all\), expected finite numbers$"):
        require_finite(np.array([[0, 1], [np.nan, np.inf]], np.float32), field="state")
