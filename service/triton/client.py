"""One tritonserver, spoken to: load a model, ask it for a chunk. KServe v2 with binary tensors, over HTTP.

Owns the way from BackendRequest to Triton's tensors and back, and the translation of Triton's errors. Does not own
connections (http.py, control.py), readiness, restarts or who may send when (backend.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from collections.abc import Sequence
from http import HTTPStatus

import numpy as np

from service.backend import (
    BackendChunk,
    BackendDeadlineError,
    BackendError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
    InstructionRefusedError,
)
from service.observability.request_trace import current_trace
from service.revision import RevisionError
from service.triton.control import LoadRefusedError, TritonControl
from service.triton.http import HttpAnswer, TritonConnectionError, TritonConnections
from service.triton.shared_requests import SharedRequests
from service.triton.tensors import CHUNK, CHUNK_HEAD, METHODS, REQUEST, UNREADABLE

_logger = logging.getLogger(__name__)
# How long the JSON at the front of a body is; binary tensors follow it.
_JSON_LENGTH = "Inference-Header-Content-Length"
_DATA_TYPE = "UINT8"
_CHUNK_HEAD = f"<{len(CHUNK_HEAD)}q"
# What Triton says, with status 500 and until the model is loaded again, when a stub has died.
_DEAD_STUB = "is not healthy"
# What adapter.py says of an error of policy/instructions.py; its own words follow.
_TOO_LONG = "InstructionTooLongError: "


class ModelGoneError(BackendUnavailableError):
    """Triton answers, and the model does not: its process has died, or it was unloaded, or Triton started anew.

    It stays so until the model is loaded again.
    """


class TritonClient:
    """Addresses are "host:port" or "unix:path": of Triton's HTTP service, and of its gRPC one, which loads models."""

    def __init__(
        self, address: str, control_address: str, *, control_key: str = "", shares_memory: bool = False
    ) -> None:
        """`control_key` is TritonControl's; `shares_memory`: whether its model processes can read this one's memory."""
        self._connections = TritonConnections(address)
        self._shared = SharedRequests(enabled=shares_memory)
        self._control = TritonControl(control_address, key=control_key)
        self.is_closed = False

    def close(self) -> None:
        """Ends calls in progress with BackendUnavailableError."""
        self.is_closed = True
        self._connections.close()
        self._shared.close()

    async def is_live(self, *, timeout_s: float) -> bool:
        try:
            answer = await self._ask("GET", "/v2/health/live", timeout_s=timeout_s)
        except BackendError:
            return False
        return answer.status == HTTPStatus.OK

    async def is_ready(self, model: str, *, timeout_s: float) -> bool:
        """Whether Triton has loaded a model; one whose process has died counts as well."""
        try:
            answer = await self._ask("GET", f"/v2/models/{model}/ready", timeout_s=timeout_s)
        except BackendError:
            return False
        return answer.status == HTTPStatus.OK

    async def load(self, model: str, *, timeout_s: float) -> None:
        """Returns once the model is initialised. Raises RevisionError when it refuses, else a BackendError."""
        try:
            await self._control.load(model, timeout_s=timeout_s)
        except LoadRefusedError as error:
            raise RevisionError(_load_problem(str(error))) from None

    async def unload(self, model: str, *, timeout_s: float) -> None:
        """Returns at once; Triton finishes what is in flight. Raises a BackendError."""
        await self._control.unload(model, timeout_s=timeout_s)

    async def infer(self, model: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        """Raises a BackendError; ModelGoneError when the model has to be loaded again."""
        started_s = time.perf_counter()
        parts = request_parts(request)
        answer = await self._infer(model, parts, timeout_s=timeout_s)
        if answer.status != HTTPStatus.OK and UNREADABLE in (text := _error_text(answer)):
            # Whoever waits for an answer has not given its request up: these processes may not see each other's files.
            _logger.warning("requests are sent whole", extra={"fields": {"error": text}})
            self._shared.close()
            left_s = max(0.0, timeout_s - (time.perf_counter() - started_s))
            answer = await self._infer(model, parts, timeout_s=left_s)
        _require_ok(answer)
        actions, inference_s, batch_size = decode_response(answer)
        queue_s = max(0.0, time.perf_counter() - started_s - inference_s)
        return BackendChunk(actions=actions, inference_s=inference_s, queue_s=queue_s, batch_size=batch_size)

    async def _infer(self, model: str, parts: Sequence[bytes | memoryview], *, timeout_s: float) -> HttpAnswer:
        trace = current_trace()
        traceparent = f"traceparent: {trace.traceparent}\r\n" if trace is not None else ""
        with self._shared.sent(parts) as content:
            description = describe_request(content)
            return await self._ask(
                "POST",
                f"/v2/models/{model}/infer",
                description + content,
                headers=f"{_JSON_LENGTH}: {len(description)}\r\n{traceparent}",
                timeout_s=timeout_s,
            )

    async def _ask(
        self, method: str, path: str, content: bytes = b"", *, headers: str = "", timeout_s: float
    ) -> HttpAnswer:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connections.ask(method, path, content, headers=headers)
        except TimeoutError:
            raise BackendDeadlineError(f"Triton did not answer within {timeout_s:.3f} s") from None
        except TritonConnectionError as error:
            raise BackendUnavailableError(str(error)) from None


def request_parts(request: BackendRequest) -> list[bytes | memoryview]:
    """What REQUEST holds, one after the other, as tensors.py says."""
    instruction = request.instruction.encode()
    head = [
        request.embodiment_index,
        request.seed,
        request.num_inference_steps,
        len(request.history_states),
        len(instruction),
    ]
    floats = [request.state, request.history_states, request.history_actions]
    if (chunking := request.real_time_chunking) is None:
        head += [0, 0, 0, 0]
    else:
        method = METHODS.index(chunking.method)
        head += [len(chunking.previous_actions), chunking.inference_delay, chunking.execution_horizon, method]
        floats += [chunking.previous_actions, np.array([chunking.max_guidance_weight])]
    for frame in request.images:
        head += frame.shape[:2]
    return [
        struct.pack(f"<{len(head)}q", *head),
        *(_bytes(np.ascontiguousarray(array, "<f4")) for array in floats),
        instruction,
        *(_bytes(np.ascontiguousarray(frame)) for frame in request.images),
    ]


def describe_request(content: bytes) -> bytes:
    """The JSON in front of REQUEST's content. Written by hand: nothing in it needs escaping, every request has one."""
    return (
        f'{{"inputs":[{{"name":"{REQUEST}","datatype":"{_DATA_TYPE}","shape":[1,{len(content)}],'
        f'"parameters":{{"binary_data_size":{len(content)}}}}}],"parameters":{{"binary_data_output":true}}}}'
    ).encode()


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def decode_response(answer: HttpAnswer) -> tuple[np.ndarray, float, int]:
    """float32 actions [action_horizon, action_dim], the seconds of inference and the size of its batch.

    Raises BackendFailedError.
    """
    try:
        start = int(answer.headers[_JSON_LENGTH.lower().encode()])
        (output,) = json.loads(answer.content[:start])["outputs"]
        if (output["name"], output["datatype"]) != (CHUNK, _DATA_TYPE):
            raise ValueError(f"{output['name']} came as {output['datatype']}")
        if (num_bytes := output["parameters"]["binary_data_size"]) != len(answer.content) - start:
            raise ValueError(f"{len(answer.content) - start} of {num_bytes} bytes came")
        inference_ns, batch_size, horizon, action_dim = struct.unpack_from(_CHUNK_HEAD, answer.content, start)
        actions = np.frombuffer(answer.content, "<f4", offset=start + struct.calcsize(_CHUNK_HEAD))
        if min(horizon, action_dim) < 0:
            raise ValueError(f"actions of shape {[horizon, action_dim]} came")
        return actions.reshape(horizon, action_dim), inference_ns / 1e9, batch_size
    except (KeyError, ValueError, IndexError, TypeError, struct.error) as error:
        raise BackendFailedError(f"Triton's answer is not a chunk: {error!r}") from None


def _require_ok(answer: HttpAnswer) -> None:
    if answer.status == HTTPStatus.OK:
        return
    text = _error_text(answer)
    message = f"{answer.status}: {text}"
    if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE) or _DEAD_STUB in text:
        raise ModelGoneError(message)
    if _TOO_LONG in text:
        raise InstructionRefusedError(text.partition(_TOO_LONG)[2])
    raise BackendFailedError(message)


def _error_text(answer: HttpAnswer) -> str:
    try:
        return str(json.loads(answer.content)["error"])
    except (ValueError, KeyError, TypeError):
        return answer.content.decode(errors="replace")


def _load_problem(text: str) -> str:
    """The exception that `initialize` raised, out of Triton's account of it."""
    text = text.split("\n\nAt:")[0]
    for marker in ("CheckpointError: ", "Internal: "):
        if marker in text:
            return text.split(marker, 1)[1].strip().rstrip(";")
    return text
