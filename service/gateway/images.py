"""A caller's frame to pixels, trusting nothing in it.

Owns what a compressed frame may be and its decoding: JPEG by libjpeg-turbo, which refuses what it would have to repair,
and PNG by Pillow's PNG reader, given nothing but the chunks that hold pixels. Does not own resizing: the policy does
that, the same way in training and serving.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import PngImagePlugin

from premotor.v1 import policy_pb2
from premotor.wire import compressed_format, decode_image
from service.errors import InvalidRequestError
from service.gateway.limits import GatewayLimits

# A progressive file of a few kilobytes can ask for hundreds of passes over the whole frame; encoders write about ten.
MAX_JPEG_SCANS = 32
# Below these a baseline JPEG decodes in less time (about 100 us) than it takes to reach a thread and come back.
INLINE_MAX_BYTES = 16 * 1024
INLINE_MAX_PIXELS = 2 * 128 * 128

_JPEG_START_OF_SCAN = b"\xff\xda"
_JPEG_COLORSPACES = ("YCbCr", "RGB")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TRUECOLOR = 2
_PNG_COLORS = {0: "grey", 3: "a palette", 4: "grey with alpha", 6: "RGB with alpha"}
# What Pillow's PNG reader raises on files that are not what they declare.
_PNG_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One camera's frame after its header has been checked: pixels, or a file that is yet to be decoded."""

    field: str
    height: int
    width: int
    # uint8 [height, width, 3], read-only; None for a file.
    pixels: np.ndarray | None = None
    # The bytes of a JPEG or PNG file; empty for pixels.
    file: bytes = b""
    # "jpeg" or "png"; empty for pixels.
    format: str = ""
    num_scans: int = 0


def inspect_image(image: policy_pb2.Image, *, field: str, limits: GatewayLimits) -> Frame:
    """Reads no more than the header of a file. Raises InvalidRequestError or premotor.wire.WireError."""
    content = decode_image(
        image,
        field=field,
        max_pixels=limits.max_image_pixels,
        max_compressed_bytes=limits.max_compressed_image_bytes,
    )
    if isinstance(content, np.ndarray):
        return Frame(field=field, height=content.shape[0], width=content.shape[1], pixels=content)
    field = f"{field}.compressed"
    inspect = _inspect_jpeg if compressed_format(content, field=field) == "jpeg" else _inspect_png
    frame = inspect(content, field)
    if not 0 < frame.height * frame.width <= limits.max_image_pixels:
        raise InvalidRequestError(
            field,
            f"{frame.height} x {frame.width} pixels came, expected at least one and at most {limits.max_image_pixels}",
        )
    return frame


def decode_frames(frames: tuple[Frame, ...]) -> tuple[np.ndarray, ...]:
    """uint8 [height, width, 3] each. Raises InvalidRequestError for a file whose body is not what its header says."""
    return tuple(frame.pixels if frame.pixels is not None else _decode_file(frame) for frame in frames)


def decodes_quickly(frames: tuple[Frame, ...]) -> bool:
    """Whether decoding costs the event loop less than a thread would."""
    files = [frame for frame in frames if frame.pixels is None]
    return (
        all(frame.format == "jpeg" and frame.num_scans == 1 for frame in files)
        and sum(len(frame.file) for frame in files) <= INLINE_MAX_BYTES
        and sum(frame.height * frame.width for frame in files) <= INLINE_MAX_PIXELS
    )


def _inspect_jpeg(file: bytes, field: str) -> Frame:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(file)
    except ValueError as error:
        raise InvalidRequestError(field, f"not a decodable JPEG file: {error}") from None
    if colorspace not in _JPEG_COLORSPACES:
        raise InvalidRequestError(field, f"a JPEG file in {colorspace} came, expected RGB")
    num_scans = file.count(_JPEG_START_OF_SCAN)
    if num_scans > MAX_JPEG_SCANS:
        raise InvalidRequestError(field, f"a JPEG file with {num_scans} scans came, expected at most {MAX_JPEG_SCANS}")
    return Frame(field=field, height=int(height), width=int(width), file=file, format="jpeg", num_scans=num_scans)


def _inspect_png(file: bytes, field: str) -> Frame:
    header = file[len(_PNG_SIGNATURE) : len(_PNG_SIGNATURE) + 18]
    if len(header) < 18 or header[:8] != b"\x00\x00\x00\x0dIHDR":
        raise InvalidRequestError(field, "not a decodable PNG file: it does not begin with its header chunk")
    width, height, bit_depth, color = struct.unpack(">IIBB", header[8:])
    if color != _PNG_TRUECOLOR:
        came = _PNG_COLORS.get(color, f"color type {color}")
        raise InvalidRequestError(field, f"a PNG file in {came} came, expected RGB")
    if bit_depth != 8:
        raise InvalidRequestError(field, f"a PNG file with {bit_depth} bits a channel came, expected 8")
    return Frame(field=field, height=height, width=width, file=file, format="png")


def _decode_file(frame: Frame) -> np.ndarray:
    pixels = _decode_jpeg(frame) if frame.format == "jpeg" else _decode_png(frame)
    if pixels.shape != (frame.height, frame.width, 3):
        raise InvalidRequestError(
            frame.field,
            f"the file decodes to shape {list(pixels.shape)}, its header says {[frame.height, frame.width, 3]}",
        )
    return pixels


def _decode_jpeg(frame: Frame) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(frame.file, colorspace="RGB")
    except ValueError as error:
        raise InvalidRequestError(frame.field, f"not a decodable JPEG file: {error}") from None


def _decode_png(frame: Frame) -> np.ndarray:
    pixel_chunks = b"".join(_png_pixel_chunks(frame))
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(_PNG_SIGNATURE + pixel_chunks)) as image:
            return np.array(image)
    except _PNG_ERRORS as error:
        raise InvalidRequestError(frame.field, f"not a decodable PNG file: {error}") from None


def _png_pixel_chunks(frame: Frame) -> Iterator[bytes]:
    """Header, data and end. Text, profiles and animations never reach the decoder; transparency is refused."""
    file, start = memoryview(frame.file), len(_PNG_SIGNATURE)
    num_headers = 0
    while start + 12 <= len(file):
        (num_bytes,) = struct.unpack_from(">I", file, start)
        kind = bytes(file[start + 4 : start + 8])
        end = start + 12 + num_bytes
        if end > len(file):
            break
        if kind == b"tRNS":
            raise InvalidRequestError(frame.field, "a PNG file with a transparent color came, expected RGB")
        if kind == b"IHDR":
            num_headers += 1
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            yield bytes(file[start:end])
        if kind == b"IEND" and num_headers == 1:
            return
        start = end
    raise InvalidRequestError(frame.field, "not a decodable PNG file: it is cut short or has no single header")
