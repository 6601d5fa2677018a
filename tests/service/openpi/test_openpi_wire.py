"""One frame <-> one message: the same as openpi's own codec says, and nothing that harms."""

from __future__ import annotations

import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from service.errors import InvalidRequestError
from service.openpi.limits import OpenpiLimits
from service.openpi.wire import pack, unpack

LIMITS = OpenpiLimits()
DTYPES = ("?", "u1", "i1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4", ">i2")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_what_openpi_packs_is_read(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    message = unpack(msgpack_numpy.packb({"a": array, "b": {"c": [array, "text", None, 1, 0.5, True]}}), LIMITS)
    for read in (message["a"], message["b"]["c"][0]):
        np.testing.assert_array_equal(read, array)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert not read.flags.writeable
    assert message["b"]["c"][1:] == ["text", None, 1, 0.5, True]


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(-7), np.bool_(True), np.uint8(255), np.float64(1e300)])
def test_numpy_scalars_are_read_as_numbers(value):
    assert unpack(msgpack_numpy.packb([value]), LIMITS) == [value.item()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_packed_openpi_reads(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read = msgpack_numpy.unpackb(pack({"actions": array, "timing": {"infer_ms": 1.5}, "text": "t", "none": None}))
    np.testing.assert_array_equal(read["actions"], array)
    assert read["actions"].dtype == array.dtype
    assert (read["timing"], read["text"], read["none"]) == ({"infer_ms": 1.5}, "t", None)


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.zeros(2, complex), np.zeros(2, "f4,f4"), {1, 2}])
def test_what_is_no_number_is_not_packed(value):
    with pytest.raises(TypeError, match="has no form on this wire"):
        pack({"value": value})


def array_frame(**fields):
    marker = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "<f4", b"shape": [3]}
    marker |= {key.encode(): value for key, value in fields.items()}
    return msgpack.packb({"array": marker})


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (array_frame(dtype="|O"), "dtype '|O'"),
        (array_frame(dtype="O"), "dtype 'O'"),
        (array_frame(dtype="<c8"), "dtype '<c8'"),
        (array_frame(dtype="|V4"), "dtype '|V4'"),
        (array_frame(dtype="<M8[s]"), "dtype"),
        (array_frame(dtype="<U3"), "dtype"),
        (array_frame(dtype="f4,f4"), "dtype"),
        (array_frame(dtype="(1000000,1000000)f4"), "dtype"),
        (array_frame(dtype="<f4\n"), "dtype"),
        (array_frame(dtype="<f16"), "dtype"),
        (array_frame(dtype=b"<f4"), "dtype bytes"),
        (array_frame(dtype=[["a", "<f4"]]), "dtype list"),
        (array_frame(shape=[2**62, 2**62, 2**62]), "needs"),
        (array_frame(shape=[4]), "12 bytes came, shape [4] of float32 needs 16"),
        (array_frame(shape=[2**63, 0]), "at least one element"),
        (array_frame(shape=[-3]), "at least one element"),
        (array_frame(shape=[1] * 9), "at most 8 extents"),
        (array_frame(shape=[3.0]), "extents"),
        (array_frame(shape=[True, 3]), "extents"),
        (array_frame(shape="3"), "extents"),
        (array_frame(shape=3), "extents"),
        (array_frame(data="text"), "data is str"),
        (array_frame(data=[0] * 12), "data is list"),
        (array_frame(surprise=1), "other keys"),
        (msgpack.packb({b"__ndarray__": True}), "other keys"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}), "data is list"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), "dtype '|O'"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1}), "other keys"),
    ],
)
def test_an_array_that_is_not_what_it_declares_is_refused(frame, said):
    with pytest.raises(InvalidRequestError) as refused:
        unpack(frame, LIMITS)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "incomplete"),
        (b"\xc1", "broken"),
        (b"\xc0\xc0", "extra data"),
        (array_frame()[:-1], "incomplete"),
        (array_frame()[:20], "incomplete"),
        (b"\x81\x01\x01", "map key"),
        (b"\x81\x90\x01", "map key"),
        (b"\xa2\xff\xff", "utf-8"),
        (b"\xd6\xff\x00\x00\x00\x00", "max_ext_len"),
        (b"\xc7\x01\x05\x00", "max_ext_len"),
        (b"\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "max_map_len"),
        (b"\xc6\xff\xff\xff\xff", "incomplete"),
        (b"\x91" * 1_000_000, "nested too deeply"),
        (b"\x91" * 9 + b"\xc0", "nested too deeply"),
        (b"\x81\xa1a" * 9 + b"\xc0", "nested too deeply"),
        (b"\x82\xa1a\x01\xa1a\x02", "repeated key"),
        (b"\x9a" + (b"\xdc\x02\x00" + b"\xc0" * 512) * 10, "more than 4096 entries"),
        (b"\xdc\x10\x00" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 4096, "more than 4096 entries"),
    ],
)
def test_a_frame_that_is_none_or_too_much_is_refused(frame, said):
    with pytest.raises(InvalidRequestError) as refused:
        unpack(frame, LIMITS)
    assert said in refused.value.message


def test_as_deep_and_as_many_as_allowed_is_read():
    assert unpack(b"\x91" * 8 + b"\xc0", LIMITS) == [[[[[[[[None]]]]]]]]
    assert len(unpack(msgpack.packb([0] * 4096), LIMITS)) == 4096


def test_lists_in_lists_that_declare_much_are_refused_before_they_are_made():
    # Sixteen million empty lists would take a gigabyte; each level of the nesting declares as much as it may.
    frames = (
        b"\xdc\x10\x00" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 4096,
        (b"\xdc\x10\x00" * 1000) + b"\x90" * 100,
    )
    for frame in frames:
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRequestError):
                unpack(frame, LIMITS)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 64 * 1024 * 1024


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
MARKERS = st.fixed_dictionaries(
    {b"__ndarray__": SCALARS},
    optional={b"data": SCALARS, b"dtype": SCALARS | st.sampled_from(DTYPES), b"shape": SCALARS | st.lists(SCALARS)},
)


@given(st.binary(max_size=200) | st.recursive(SCALARS | MARKERS, lambda inner: st.lists(inner)).map(msgpack.packb))
def test_no_bytes_do_anything_but_become_a_message_or_a_refusal(frame):
    try:
        unpack(frame, LIMITS)
    except InvalidRequestError as refused:
        assert len(refused.message) < 400


@pytest.mark.parametrize("name", ["max_connections", "max_entries", "send_timeout_s"])
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        OpenpiLimits(**{name: 0})
