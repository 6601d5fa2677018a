"""Frames, spans and errors survive the wire, and what does not hold what it declares is refused."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from premotor.v1 import policy_pb2
from premotor.wire import (
    ERROR_METADATA_KEY,
    WireError,
    compressed_format,
    decode_duration,
    decode_image,
    encode_duration,
    encode_image,
    error_metadata,
    read_error_metadata,
)

PNG = b"\x89PNG\r\n\x1a\n and more"
JPEG = b"\xff\xd8\xff\xe0 and more"


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))))
def test_pixels_survive_the_wire(frame: np.ndarray) -> None:
    message = policy_pb2.Image.FromString(encode_image(frame).SerializeToString())
    decoded = decode_image(message, field="front")
    assert isinstance(decoded, np.ndarray)
    np.testing.assert_array_equal(decoded, frame)


@pytest.mark.parametrize(("file", "name"), [(PNG, "png"), (JPEG, "jpeg")])
def test_a_file_survives_the_wire_as_it_is(file: bytes, name: str) -> None:
    assert decode_image(encode_image(file), field="front") == file
    assert compressed_format(file, field="front") == name


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_frames_other_than_rgb_bytes_are_not_sent(frame: np.ndarray) -> None:
    with pytest.raises(WireError, match=r"expected uint8 \[height, width, 3\]"):
        encode_image(frame)


@pytest.mark.parametrize("file", [b"", b"GIF89a", PNG[1:], JPEG[:2]])
def test_a_file_that_is_neither_jpeg_nor_png_is_refused_on_both_sides(file: bytes) -> None:
    with pytest.raises(WireError, match="expected a JPEG or PNG file"):
        encode_image(file)
    with pytest.raises(WireError, match=r"front.compressed: .* expected a JPEG or PNG file"):
        decode_image(policy_pb2.Image(compressed=file), field="front")


def test_an_image_without_an_encoding_is_refused() -> None:
    with pytest.raises(WireError, match="front: no encoding came"):
        decode_image(policy_pb2.Image(), field="front")


def test_caps_hold_for_pixels_and_for_files() -> None:
    frame = np.zeros((4, 5, 3), np.uint8)
    decode_image(encode_image(frame), field="front", max_pixels=20)
    with pytest.raises(WireError, match=r"front.pixels.shape: .* at most 57 elements"):
        decode_image(encode_image(frame), field="front", max_pixels=19)
    decode_image(encode_image(PNG), field="front", max_compressed_bytes=len(PNG))
    with pytest.raises(WireError, match=f"front.compressed: {len(PNG)} bytes came, expected at most {len(PNG) - 1}"):
        decode_image(encode_image(PNG), field="front", max_compressed_bytes=len(PNG) - 1)


def test_pixels_without_a_pixel_are_refused() -> None:
    tensor = policy_pb2.Tensor(data_type=policy_pb2.Tensor.DATA_TYPE_UINT8, shape=[0, 7, 3])
    with pytest.raises(WireError, match="expected at least one pixel"):
        decode_image(policy_pb2.Image(pixels=tensor), field="front")


@given(st.integers(-(10**15), 10**15))
def test_a_span_survives_the_wire_to_the_nanosecond(microseconds: int) -> None:
    seconds = microseconds / 1e6
    message = encode_duration(seconds)
    assert message.seconds * 10**9 + message.nanos == pytest.approx(microseconds * 1000, abs=150)
    assert decode_duration(message, field="timeout") == pytest.approx(seconds, rel=1e-15, abs=1e-9)
    assert message.seconds * message.nanos >= 0


@pytest.mark.parametrize(
    ("seconds", "parts"),
    [(0.0, (0, 0)), (1.5, (1, 500_000_000)), (-0.25, (0, -250_000_000)), (0.9999999999, (1, 0)), (-3.0, (-3, 0))],
)
def test_spans_have_the_canonical_parts(seconds: float, parts: tuple[int, int]) -> None:
    message = encode_duration(seconds)
    assert (message.seconds, message.nanos) == parts


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf"), 1e12])
def test_a_span_that_cannot_be_is_not_sent(seconds: float) -> None:
    with pytest.raises(WireError, match="timeout: "):
        encode_duration(seconds, field="timeout")


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_any_duration_is_decoded_or_refused(seconds: int, nanos: int) -> None:
    try:
        decoded = decode_duration(Duration(seconds=seconds, nanos=nanos), field="timeout")
    except WireError as error:
        assert error.field == "timeout"
    else:
        assert abs(decoded) <= 315_576_000_001


def test_an_error_survives_trailing_metadata() -> None:
    error = policy_pb2.RequestError(request_id="r", code=3, message="état", field="observation.state")
    assert read_error_metadata([("x", "y"), *error_metadata(error)]) == error


@given(st.text(min_size=1, max_size=4))
def test_an_error_fits_into_headers_whatever_the_caller_put_into_its_names(text: str) -> None:
    error = policy_pb2.RequestError(
        robot_id=text * 1000, episode_id=text * 1000, request_id=text * 1000, message=text * 1000, field=text * 1000
    )
    ((key, value),) = error_metadata(error)
    assert len(key) + len(value) < 4096
    bounded = read_error_metadata([(key, value)])
    assert bounded is not None
    assert bounded.message.endswith("...")
    assert error.message.startswith(bounded.message.removesuffix("..."))


@pytest.mark.parametrize("metadata", [None, [], [("other", "x")], [(ERROR_METADATA_KEY, b"\xff\xff")]])
def test_metadata_without_a_readable_error_reads_as_none(metadata: list[tuple[str, str | bytes]] | None) -> None:
    assert read_error_metadata(metadata) is None
