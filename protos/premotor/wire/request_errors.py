"""RequestError <-> the trailing metadata of a failed unary call."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from premotor.v1 import policy_pb2

ERROR_METADATA_KEY = "premotor-error-bin"
# gRPC peers drop a call whose headers exceed 8 KiB, and then the caller learns nothing. Names and ids in an error come
# from the caller, at any length.
MAX_TEXT_BYTES = 768
_TEXTS = ("robot_id", "episode_id", "request_id", "message", "field")


def error_metadata(error: policy_pb2.RequestError) -> tuple[tuple[str, bytes]]:
    """The metadata that carries an error; each of its texts is cut to 768 bytes of UTF-8."""
    bounded = policy_pb2.RequestError()
    bounded.CopyFrom(error)
    for name in _TEXTS:
        text = getattr(error, name).encode()
        if len(text) > MAX_TEXT_BYTES:
            setattr(bounded, name, text[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "...")
    return ((ERROR_METADATA_KEY, bounded.SerializeToString()),)


def read_error_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> policy_pb2.RequestError | None:
    """The error a call's trailing metadata carries, None when there is none or it cannot be read."""
    for key, value in metadata or ():
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            try:
                return policy_pb2.RequestError.FromString(value)
            except DecodeError:
                return None
    return None
