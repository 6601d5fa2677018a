"""No server at all: the forward in a process of its own, asked over a pipe and timed around the forward alone.

Owns the frames on the pipe, which are those of the fleet's drivers: a length of the header, a length of the data, the
header as JSON, the data.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from service.bench.peers.served_model import ServedModel, model_parser, model_settings

_LENGTHS = struct.Struct("<II")


def main() -> None:
    model = ServedModel(model_settings(model_parser(__doc__ or "").parse_args()))
    model.warm_up()
    _write({"id": "ready"}, b"")
    views: list[dict[str, np.ndarray]] = []
    while (frame := _read()) is not None:
        header, data = frame
        if header["verb"] == "view":
            views.append(_frames(header, data))
            _write({"id": header["id"]}, b"")
            continue
        state = np.array(header["state"], np.float32)
        started_s = time.perf_counter()
        actions = model.chunk(views[header["view"]], state, header["instruction"], header["seed"])
        seconds = time.perf_counter() - started_s
        _write({"id": header["id"], "seconds": seconds, "shape": actions.shape}, actions.astype("<f4").tobytes())


def _frames(header: Mapping[str, Any], data: bytes) -> dict[str, np.ndarray]:
    frames, offset = {}, 0
    for camera in header["cameras"]:
        shape = (camera["height"], camera["width"], 3)
        num_bytes = int(np.prod(shape))
        frames[camera["name"]] = np.frombuffer(data, np.uint8, num_bytes, offset).reshape(shape)
        offset += num_bytes
    return frames


def _read() -> tuple[dict[str, Any], bytes] | None:
    """None once the other end has closed."""
    lengths = sys.stdin.buffer.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_bytes, data_bytes = _LENGTHS.unpack(lengths)
    return json.loads(sys.stdin.buffer.read(header_bytes)), sys.stdin.buffer.read(data_bytes)


def _write(header: Mapping[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(_LENGTHS.pack(len(encoded), len(data)) + encoded + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
