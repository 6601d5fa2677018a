"""Camera frames <-> Image.

Owns telling the encodings apart and the caps on both. Does not own codecs: a compressed frame stays bytes here, and
whoever decodes it must check its decompressed size before allocating.
"""

from __future__ import annotations

import numpy as np

from premotor.v1 import policy_pb2
from premotor.wire.errors import WireError
from premotor.wire.tensors import decode_tensor, encode_tensor

MAX_COMPRESSED_BYTES = 16 * 1024 * 1024
MAX_PIXELS = 4096 * 4096
_SIGNATURES = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


def encode_image(frame: np.ndarray | bytes, *, field: str = "image") -> policy_pb2.Image:
    """The message for uint8 pixels [height, width, 3] (sent raw) or for the bytes of a JPEG or PNG file.

    Raises WireError for any other shape, element type or file.
    """
    if isinstance(frame, bytes):
        compressed_format(frame, field=field)
        return policy_pb2.Image(compressed=frame)
    require_frame(frame, field=field)
    return policy_pb2.Image(pixels=encode_tensor(frame, field=field))


def require_frame(frame: np.ndarray, *, field: str) -> None:
    """Raises WireError for anything but uint8 [height, width, 3] with at least one pixel."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise WireError(field, f"{frame.dtype} {list(frame.shape)} came, expected uint8 [height, width, 3]")


def decode_image(
    image: policy_pb2.Image,
    *,
    field: str,
    max_pixels: int = MAX_PIXELS,
    max_compressed_bytes: int = MAX_COMPRESSED_BYTES,
) -> np.ndarray | bytes:
    """What a message holds: pixels, uint8 [height, width, 3] and read-only, or the bytes of a JPEG or PNG file.

    Raises WireError when no encoding is set, the pixels are not what they declare, or a cap is exceeded.
    """
    encoding = image.WhichOneof("encoding")
    if encoding == "pixels":
        field = f"{field}.pixels"
        pixels = decode_tensor(
            image.pixels, field=field, dtype=np.uint8, shape=(None, None, 3), max_elements=3 * max_pixels
        )
        if pixels.size == 0:
            raise WireError(f"{field}.shape", f"{list(pixels.shape)} came, expected at least one pixel")
        return pixels
    if encoding == "compressed":
        field, compressed = f"{field}.compressed", image.compressed
        if len(compressed) > max_compressed_bytes:
            raise WireError(field, f"{len(compressed)} bytes came, expected at most {max_compressed_bytes}")
        compressed_format(compressed, field=field)
        return compressed
    raise WireError(field, "no encoding came, expected compressed or pixels")


def compressed_format(compressed: bytes, *, field: str) -> str:
    """ "jpeg" or "png", from the first bytes alone. Raises WireError for anything else."""
    for name, signature in _SIGNATURES.items():
        if compressed.startswith(signature):
            return name
    raise WireError(field, f"bytes that begin with {compressed[:8]!r} came, expected a JPEG or PNG file")
