"""What a compressed frame may be: RGB, 8 bits, whole, of a bounded size; everything else is refused before decoding."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from premotor.v1 import policy_pb2
from premotor.wire import WireError, encode_tensor
from service.errors import InvalidRequestError
from service.gateway.images import decode_frames, decodes_quickly, inspect_image
from service.gateway.limits import GatewayLimits

FIELD = "observation.images[wrist]"
LIMITS = GatewayLimits(max_image_pixels=10_000, max_compressed_image_bytes=50_000)


def compressed(content: bytes) -> policy_pb2.Image:
    return policy_pb2.Image(compressed=content)


def file_of(frame: np.ndarray, format: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def decode(content: bytes) -> np.ndarray:
    return decode_frames((inspect_image(compressed(content), field=FIELD, limits=LIMITS),))[0]


def refusal(content: bytes) -> str:
    with pytest.raises((InvalidRequestError, WireError)) as refused:
        decode(content)
    assert refused.value.field == f"{FIELD}.compressed"
    return str(refused.value)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 4}])
def test_a_jpeg_decodes_to_the_pixels_that_pillow_sees(kit, options):
    content = file_of(kit.frame(), "JPEG", quality=90, **options)
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}])
def test_a_png_decodes_to_exactly_the_pixels_that_were_encoded(kit, options):
    np.testing.assert_array_equal(decode(file_of(kit.frame(), "PNG", **options)), kit.frame())


def test_raw_pixels_are_a_view_of_the_messages_bytes(kit):
    image = policy_pb2.Image(pixels=encode_tensor(kit.frame()))
    (pixels,) = decode_frames((inspect_image(image, field=FIELD, limits=LIMITS),))
    np.testing.assert_array_equal(pixels, kit.frame())
    assert pixels.base is not None and not pixels.flags.writeable


@pytest.mark.parametrize(("mode", "came"), [("L", "grey"), ("LA", "grey with"), ("RGBA", "RGB with"), ("P", "palette")])
def test_a_png_that_is_not_rgb_is_refused(kit, mode, came):
    assert came in refusal(file_of(kit.frame(), "PNG", mode))


@pytest.mark.parametrize(("mode", "came"), [("L", "Gray"), ("CMYK", "CMYK")])
def test_a_jpeg_that_is_not_rgb_is_refused(kit, mode, came):
    assert came in refusal(file_of(kit.frame(), "JPEG", mode))


def test_a_png_with_16_bits_a_channel_is_refused(kit):
    content = bytearray(file_of(kit.frame(), "PNG"))
    content[24] = 16
    assert "16 bits" in refusal(bytes(content))


def test_a_png_with_a_transparent_color_is_refused(kit):
    assert "transparent" in refusal(file_of(kit.frame(), "PNG", transparency=(0, 0, 0)))


@pytest.mark.parametrize("format", ["GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(kit, format):
    assert "JPEG or PNG" in refusal(file_of(kit.frame(), format))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_file_cut_short_anywhere_is_refused(kit, format):
    content = file_of(kit.frame(), format)
    for num_bytes in range(len(content)):
        refusal(content[:num_bytes])


def test_a_png_with_a_wrong_checksum_is_refused(kit):
    content = bytearray(file_of(kit.frame(), "PNG"))
    content[content.index(b"IDAT") + 30] ^= 1
    refusal(bytes(content))


def test_a_png_with_two_headers_is_refused(kit):
    content = file_of(kit.frame(), "PNG")
    refusal(content[:33] + content[8:33] + content[33:])


def test_text_profiles_and_animation_of_a_png_never_reach_the_decoder(kit):
    content = file_of(kit.frame(), "PNG")
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(10_000_000)))
    animation = chunk(b"acTL", struct.pack(">II", 1000, 0))
    np.testing.assert_array_equal(decode(content[:33] + bomb + animation + content[33:]), kit.frame())


@pytest.mark.parametrize(("height", "width"), [(101, 100), (1, 10_001), (60_000, 60_000)])
def test_a_png_that_declares_too_many_pixels_is_refused_from_its_header(height, width):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    message = refusal(b"\x89PNG\r\n\x1a\n" + header)
    assert f"{height} x {width} pixels came" in message and "at most 10000" in message


def test_a_jpeg_that_declares_too_many_pixels_is_refused_from_its_header(kit):
    content = bytearray(kit.jpeg())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    assert "60000 x 60000 pixels came" in refusal(bytes(content))


def test_a_file_of_too_many_bytes_is_refused(kit):
    assert "50001 bytes came, expected at most 50000" in refusal(kit.jpeg().ljust(50_001, b"\0"))


def test_a_jpeg_with_more_passes_than_an_encoder_writes_is_refused(kit):
    content = file_of(kit.frame(), "JPEG", progressive=True)
    scan = content[content.index(b"\xff\xda") : -2]
    assert "scans came, expected at most 32" in refusal(content[:-2] + scan * 40 + b"\xff\xd9")


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4, 4), (4, 4), (4, 4, 1), (101, 100, 3)])
def test_raw_pixels_of_a_wrong_shape_or_too_many_are_refused(shape):
    image = policy_pb2.Image(pixels=encode_tensor(np.zeros(shape, np.uint8)))
    with pytest.raises(WireError) as refused:
        inspect_image(image, field=FIELD, limits=LIMITS)
    assert refused.value.field == f"{FIELD}.pixels.shape"


def test_an_image_without_an_encoding_is_refused():
    with pytest.raises(WireError) as refused:
        inspect_image(policy_pb2.Image(), field=FIELD, limits=LIMITS)
    assert refused.value.field == FIELD


def test_only_small_baseline_jpegs_are_decoded_without_a_thread(kit):
    def quick(content: bytes) -> bool:
        return decodes_quickly((inspect_image(compressed(content), field=FIELD, limits=GatewayLimits()),))

    assert quick(simplejpeg.encode_jpeg(kit.frame(128, 128)))
    assert not quick(simplejpeg.encode_jpeg(kit.frame(480, 640)))
    assert not quick(file_of(kit.frame(128, 128), "JPEG", progressive=True))
    assert not quick(file_of(kit.frame(128, 128), "PNG"))
