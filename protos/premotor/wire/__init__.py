"""numpy arrays and seconds to the messages of premotor.v1 and back, the same code on robot and gateway.

Owns the byte layout of Tensor, Image, Duration and RequestError, and the refusal of messages that do not hold what they
declare. Does not own what a policy expects (the gateway's validation) nor image files (each side picks its codec).
"""

from premotor.wire.durations import decode_duration, encode_duration
from premotor.wire.errors import WireError
from premotor.wire.images import (
    MAX_COMPRESSED_BYTES,
    MAX_PIXELS,
    compressed_format,
    decode_image,
    encode_image,
    require_frame,
)
from premotor.wire.request_errors import ERROR_METADATA_KEY, error_metadata, read_error_metadata
from premotor.wire.tensors import MAX_ELEMENTS, decode_tensor, encode_tensor, require_finite

__all__ = [
    "ERROR_METADATA_KEY",
    "MAX_COMPRESSED_BYTES",
    "MAX_ELEMENTS",
    "MAX_PIXELS",
    "WireError",
    "compressed_format",
    "decode_duration",
    "decode_image",
    "decode_tensor",
    "encode_duration",
    "encode_image",
    "encode_tensor",
    "error_metadata",
    "read_error_metadata",
    "require_finite",
    "require_frame",
]
