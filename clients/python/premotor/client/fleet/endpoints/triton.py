"""A premotor model in Triton, asked directly: KServe v2 with binary tensors over HTTP/1.1.

Owns the connections and the layout of the request, which is that of the model's own inputs (raw pixels: nothing before
Triton decodes). There is no queue of deadlines, no check and no routing on this way; that is what it is compared for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import deque

import numpy as np

from premotor.client.description import Embodiment
from premotor.client.fleet.endpoint import Answer, AskError, Reconnection, Sent
from premotor.client.fleet.questions import Question

_JSON_LENGTH = "inference-header-content-length"
_HEADERS_BYTES = 64 * 1024
# Nanoseconds of inference, size of the batch, and the shape of the actions.
_CHUNK_HEAD_NUMBERS = 4
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TritonEndpoint:
    """Keep-alive connections, one for each question in flight."""

    max_in_flight = 32

    def __init__(
        self,
        address: str,
        *,
        model: str,
        embodiment: Embodiment,
        embodiment_index: int,
        num_inference_steps: int,
    ) -> None:
        """`address` is host:port or unix:path of Triton's HTTP service."""
        self._address = address
        self._model = model
        self._embodiment = embodiment
        self._embodiment_index = embodiment_index
        self._num_inference_steps = num_inference_steps
        self._idle: deque[_Connection] = deque()
        self._busy: set[asyncio.StreamWriter] = set()
        self._reconnection = Reconnection(random.Random(embodiment_index))

    @property
    def num_reconnections(self) -> int:
        return self._reconnection.count

    async def open(self, *, timeout_s: float) -> None:
        try:
            self._idle.append(await asyncio.wait_for(self._connect(), timeout_s))
        except (OSError, asyncio.TimeoutError) as error:
            raise AskError("UNAVAILABLE", f"{self._address}: {type(error).__name__}") from None

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        content = self._content(question)
        sent(len(content))
        try:
            connection, content_of_answer, header_bytes = await asyncio.wait_for(self._exchange(content), timeout_s)
        except asyncio.TimeoutError:
            raise AskError("DeadlineExceededError", f"no answer within {timeout_s:g} s") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            self._reconnection.lost(time.monotonic())
            raise AskError("RetryableError", f"{type(error).__name__}: {error}") from None
        self._idle.append(connection)
        self._reconnection.found()
        actions, inference_s = _read(content_of_answer, header_bytes)
        received_s = time.monotonic()
        return Answer(
            actions=actions,
            revision=self._model,
            server_s={"inference": inference_s},
            response_bytes=len(content_of_answer),
            received_s=received_s,
        )

    async def close(self) -> None:
        for writer in (*self._busy, *(writer for _, writer in self._idle)):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._idle.clear()

    async def _exchange(self, content: bytes) -> tuple[_Connection, bytes, int]:
        """The connection, to be used again, the answer's content and how much of it is JSON."""
        reader, writer = self._idle.popleft() if self._idle else await self._connect()
        self._busy.add(writer)
        try:
            writer.write(content)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = _headers(head)
            answer = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            # Half an answer may still come: nobody may read it as another's.
            writer.transport.abort()
            raise
        finally:
            self._busy.discard(writer)
        if status != 200:
            self._idle.append((reader, writer))
            raise AskError(f"HTTP {status}", answer[:500].decode(errors="replace"))
        return (reader, writer), answer, int(headers[_JSON_LENGTH])

    async def _connect(self) -> _Connection:
        if self._address.startswith("unix:"):
            return await asyncio.open_unix_connection(self._address.removeprefix("unix:"), limit=_HEADERS_BYTES)
        host, _, port = self._address.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port), limit=_HEADERS_BYTES)

    def _content(self, question: Question) -> bytes:
        """The whole HTTP request."""
        frames = [question.images[camera.name] for camera in self._embodiment.cameras]
        instruction = question.instruction.encode()
        # No step of history, nothing of real-time chunking.
        numbers = [self._embodiment_index, question.seed, self._num_inference_steps, 0, len(instruction), 0, 0, 0, 0]
        pixels = []
        for frame in frames:
            if isinstance(frame, bytes):
                raise AskError("ProtocolError", "this way takes raw frames only: --image-encoding raw")
            numbers += frame.shape[:2]
            pixels.append(np.ascontiguousarray(frame).tobytes())
        state = np.asarray(question.state, "<f4").tobytes()
        request = b"".join((np.array(numbers, "<i8").tobytes(), state, instruction, *pixels))
        tensor = {
            "name": "REQUEST",
            "datatype": "UINT8",
            "shape": [1, len(request)],
            "parameters": {"binary_data_size": len(request)},
        }
        description = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        body = description + request
        head = (
            f"POST /v2/models/{self._model}/infer HTTP/1.1\r\nHost: triton\r\n{_JSON_LENGTH}: {len(description)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _headers(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _read(content: bytes, header_bytes: int) -> tuple[np.ndarray, float]:
    """float32 [action_horizon, action_dim] and the seconds of inference. Raises AskError."""
    try:
        (output,) = json.loads(content[:header_bytes])["outputs"]
        if output["name"] != "CHUNK":
            raise ValueError(f"{output['name']} came, expected CHUNK")
        chunk = content[header_bytes : header_bytes + output["parameters"]["binary_data_size"]]
        inference_ns, _, *shape = np.frombuffer(chunk, "<i8", count=_CHUNK_HEAD_NUMBERS).tolist()
        actions = np.frombuffer(chunk, "<f4", offset=8 * _CHUNK_HEAD_NUMBERS).reshape(shape)
        return actions.astype(np.float32), inference_ns / 1e9
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise AskError("ProtocolError", f"Triton's answer is no chunk: {error!r}") from None
