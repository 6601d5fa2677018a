"""Camera frames to what goes on the wire.

Owns the choice of JPEG codec, an optional dependency. The policy was trained on clean frames, so the quality is high
and chroma is kept in full; a caller with a slow link compresses as it likes and passes bytes.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np

from premotor.client.errors import FixRequestError, fix_request
from premotor.v1 import policy_pb2
from premotor.wire import encode_image, require_frame

ImageEncoding = Literal["jpeg", "raw"]
IMAGE_ENCODINGS: tuple[ImageEncoding, ...] = ("jpeg", "raw")
JPEG_QUALITY = 95


def encode_frame(frame: np.ndarray | bytes, encoding: ImageEncoding, *, field: str) -> policy_pb2.Image:
    """The message for RGB pixels, uint8 [height, width, 3], or for the bytes of a JPEG or PNG file, sent as they are.

    Raises FixRequestError for anything else, and where "jpeg" is asked for and no codec is installed.
    """
    if encoding not in IMAGE_ENCODINGS:
        raise FixRequestError(
            f"image_encoding {encoding!r} came, expected one of {', '.join(IMAGE_ENCODINGS)}", field="image_encoding"
        )
    if not isinstance(frame, bytes) and not isinstance(frame, np.ndarray):
        raise FixRequestError(f"{field}: {type(frame).__name__} came, expected a numpy array or bytes", field=field)
    with fix_request():
        if encoding == "raw" or isinstance(frame, bytes):
            return encode_image(frame, field=field)
        require_frame(frame, field=field)
    return policy_pb2.Image(compressed=encode_jpeg(frame))


def encode_jpeg(frame: np.ndarray) -> bytes:
    """RGB pixels, uint8 [height, width, 3], as a JPEG file, by simplejpeg or else Pillow."""
    frame = np.ascontiguousarray(frame)
    try:
        import simplejpeg
    except ImportError:
        return _encode_jpeg_with_pillow(frame)
    return simplejpeg.encode_jpeg(frame, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")


def _encode_jpeg_with_pillow(frame: np.ndarray) -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise FixRequestError(
            "no JPEG encoder is installed: pip install 'premotor[images]', or say image_encoding='raw', which sends "
            "pixels, and the bytes of JPEG and PNG files, as they are",
            field="image_encoding",
        ) from None
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()
