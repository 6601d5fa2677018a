"""The client side of LeRobot's PolicyServer, in LeRobot's own environment: a program, run by its path.

Owns what speaks LeRobot's wire, whose messages are pickles. LeRobot's own functions write and read them in this process
and nowhere else; what comes out to the fleet is numbers in a frame of fixed form. Imports nothing of premotor, which
that environment need not have. Frames are a length of the header, a length of the data, the header as JSON, the data.

Each robot has a server of its own, for that server answers whoever asks first. Every question carries `must_go`,
without which the server drops observations that it takes for similar: that is the most it can answer.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LENGTHS = struct.Struct("<II")


class Robot:
    """One robot and its server."""

    def __init__(self, address: str) -> None:
        import grpc
        from lerobot.transport import services_pb2, services_pb2_grpc  # pyright: ignore[reportMissingImports]

        self._messages = services_pb2
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = services_pb2_grpc.AsyncInferenceStub(self._channel)
        self._timestep = 0

    async def open(self, timeout_s: float) -> None:
        await self._stub.Ready(self._messages.Empty(), timeout=timeout_s, wait_for_ready=True)

    async def ask(
        self,
        images: Mapping[str, np.ndarray],
        state: Sequence[float],
        instruction: str,
        timeout_s: float,
        told: dict[str, Any],
    ) -> np.ndarray:
        """float32 [num_actions, action_dim]. `told` gets what is known of the exchange, as it goes on.

        Raises grpc.RpcError, RuntimeError.
        """
        from lerobot.async_inference.helpers import TimedObservation  # pyright: ignore[reportMissingImports]
        from lerobot.transport.utils import (  # pyright: ignore[reportMissingImports]
            bytes_to_python_object,
            python_object_to_bytes,
            send_bytes_in_chunks,
        )

        self._timestep += 1
        observation: dict[str, Any] = {f"state_{i}": value for i, value in enumerate(state)}
        observation |= {**images, "task": instruction}
        sent = python_object_to_bytes(
            TimedObservation(timestamp=time.time(), timestep=self._timestep, observation=observation, must_go=True)
        )
        pieces = send_bytes_in_chunks(sent, self._messages.Observation, silent=True)
        told["request_bytes"] = len(sent)
        deadline_s = time.monotonic() + timeout_s
        await self._stub.SendObservations(iter(pieces), timeout=timeout_s)
        reply = await self._stub.GetActions(self._messages.Empty(), timeout=deadline_s - time.monotonic())
        if not reply.data:
            raise RuntimeError("the server had no actions")
        stacked = np.stack([timed.get_action().numpy() for timed in bytes_to_python_object(reply.data)])
        actions = np.ascontiguousarray(stacked, np.float32)
        told |= {"received_s": time.monotonic(), "response_bytes": len(reply.data), "shape": actions.shape}
        return actions

    async def close(self) -> None:
        await self._channel.close()


class Driver:
    """Answers the fleet's frames; each robot has one question at a time."""

    def __init__(self) -> None:
        self._robots: dict[int, Robot] = {}
        self._views: list[dict[str, np.ndarray]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until the fleet closes its end."""
        try:
            while True:
                header, data = await _read_frame(reader)
                task = asyncio.create_task(self._obey(header, data))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except asyncio.IncompleteReadError:
            return
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for robot in self._robots.values():
                await robot.close()

    async def _obey(self, header: Mapping[str, Any], data: bytes) -> None:
        import grpc

        answer: dict[str, Any] = {"id": header["id"]}
        content = b""
        try:
            if header["verb"] == "view":
                self._views.append(_images(header["cameras"], data))
            elif header["verb"] == "empty":
                answer["received_s"] = time.monotonic()
            elif header["verb"] == "open":
                robot = self._robots[header["robot"]] = Robot(header["address"])
                await robot.open(header["timeout_s"])
            else:
                robot = self._robots[header["robot"]]
                view = self._views[header["view"]]
                actions = await robot.ask(view, header["state"], header["instruction"], header["timeout_s"], answer)
                content = actions.tobytes()
        except grpc.RpcError as error:
            answer |= {"kind": error.code().name, "problem": error.details() or ""}
        except Exception as error:  # the edge of this program: whatever it was becomes an answer
            answer |= {"kind": type(error).__name__, "problem": str(error)}
        _write_frame(answer, content)


def _images(cameras: Sequence[Mapping[str, Any]], data: bytes) -> dict[str, np.ndarray]:
    images, offset = {}, 0
    for camera in cameras:
        num_bytes = camera["height"] * camera["width"] * 3
        frame = np.frombuffer(data, np.uint8, num_bytes, offset)
        images[camera["name"]] = frame.reshape(camera["height"], camera["width"], 3).copy()
        offset += num_bytes
    return images


async def _read_frame(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    header_bytes, data_bytes = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    header = json.loads(await reader.readexactly(header_bytes))
    return header, await reader.readexactly(data_bytes)


def _write_frame(header: Mapping[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(_LENGTHS.pack(len(encoded), len(data)) + encoded + data)
    sys.stdout.buffer.flush()


def _import_lerobot() -> None:
    import torch

    # The torchvision of the registries is built for a GPU's torch. Beside a CPU's its compiled operators do not load,
    # and it then fails on the names of two of them; no policy here uses either.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lerobot.async_inference.helpers  # noqa: F401  # pyright: ignore[reportMissingImports]


async def _main() -> None:
    reader = asyncio.StreamReader(limit=2**26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _write_frame({"id": "ready"}, b"")
    await Driver().run(reader)


if __name__ == "__main__":
    _import_lerobot()
    asyncio.run(_main())
