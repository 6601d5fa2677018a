"""One tritonserver, spoken to: load a model, ask it for a chunk. KServe v2 with binary tensors, over HTTP.

Owns the way from BackendRequest to Triton's tensors and back, and the translation of Triton's errors. Does not own
connections (http.py, control.py), readiness, restarts or who may send when (backend.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from http import HTTPStatus

import numpy as np

from service.backend import (
    BackendChunk,
    BackendDeadlineError,
    BackendError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
)
from service.observability.request_trace import current_trace
from service.revision import RevisionError
from service.triton.control import LoadRefusedError, TritonControl
from service.triton.http import HttpAnswer, TritonConnectionError, TritonConnections
from service.triton.tensors import ACTIONS, FLOATS, INSTRUCTION, META, METHODS, PIXELS, TIMING

# How long the JSON at the front of a body is; binary tensors follow it.
_JSON_LENGTH = "Inference-Header-Content-Length"
_ELEMENT_TYPES = {ACTIONS: ("FP32", np.dtype("<f4")), TIMING: ("INT64", np.dtype("<i8"))}
# What Triton says, with status 500 and until the model is loaded again, when a stub has died.
_DEAD_STUB = "is not healthy"


class ModelGoneError(BackendUnavailableError):
    """Triton answers, and the model does not: its process has died, or it was unloaded, or Triton started anew.

    It stays so until the model is loaded again.
    """


class TritonClient:
    """Addresses are "host:port" or "unix:path": of Triton's HTTP service, and of its gRPC one, which loads models."""

    def __init__(self, address: str, control_address: str) -> None:
        self._connections = TritonConnections(address)
        self._control = TritonControl(control_address)
        self.is_closed = False

    def close(self) -> None:
        """Ends calls in progress with BackendUnavailableError."""
        self.is_closed = True
        self._connections.close()

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
        description, content = encode_request(request)
        trace = current_trace()
        traceparent = f"traceparent: {trace.traceparent}\r\n" if trace is not None else ""
        answer = await self._ask(
            "POST",
            f"/v2/models/{model}/infer",
            description + content,
            headers=f"{_JSON_LENGTH}: {len(description)}\r\n{traceparent}",
            timeout_s=timeout_s,
        )
        _require_ok(answer)
        actions, inference_s, batch_size = decode_response(answer)
        queue_s = max(0.0, time.perf_counter() - started_s - inference_s)
        return BackendChunk(actions=actions, inference_s=inference_s, queue_s=queue_s, batch_size=batch_size)

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


def encode_request(request: BackendRequest) -> tuple[bytes, bytes]:
    """The JSON and the binary tensors of one request, laid out as tensors.py says."""
    meta = [request.embodiment_index, request.seed, request.num_inference_steps, len(request.history_states)]
    floats = [request.state, request.history_states, request.history_actions]
    if (chunking := request.real_time_chunking) is None:
        meta += [0, 0, 0, 0]
    else:
        method = METHODS.index(chunking.method)
        meta += [len(chunking.previous_actions), chunking.inference_delay, chunking.execution_horizon, method]
        floats += [chunking.previous_actions, np.array([chunking.max_guidance_weight])]
    for frame in request.images:
        meta += frame.shape[:2]
    tensors = (
        (PIXELS, "UINT8", 1, b"".join(np.ascontiguousarray(frame).data for frame in request.images)),
        (INSTRUCTION, "UINT8", 1, request.instruction.encode()),
        (FLOATS, "FP32", 4, b"".join(np.ascontiguousarray(array, "<f4").data for array in floats)),
        (META, "INT64", 8, np.array(meta, "<i8").tobytes()),
    )
    # Written by hand: nothing in it needs escaping, and it is made for every request.
    inputs = ",".join(
        f'{{"name":"{name}","datatype":"{data_type}","shape":[1,{len(content) // element_bytes}],'
        f'"parameters":{{"binary_data_size":{len(content)}}}}}'
        for name, data_type, element_bytes, content in tensors
    )
    description = f'{{"inputs":[{inputs}],"parameters":{{"binary_data_output":true}}}}'
    return description.encode(), b"".join(content for *_, content in tensors)


def decode_response(answer: HttpAnswer) -> tuple[np.ndarray, float, int]:
    """float32 actions [action_horizon, action_dim], the seconds of inference and the size of its batch.

    Raises BackendFailedError.
    """
    try:
        tensors = _tensors(answer)
        _, horizon, action_dim = tensors[ACTIONS].shape
        inference_ns, batch_size = tensors[TIMING][0].tolist()
        return tensors[ACTIONS].reshape(horizon, action_dim), inference_ns / 1e9, batch_size
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BackendFailedError(f"Triton's answer is not a chunk: {error!r}") from None


def _tensors(answer: HttpAnswer) -> dict[str, np.ndarray]:
    offset = int(answer.headers[_JSON_LENGTH.lower().encode()])
    tensors = {}
    for output in json.loads(answer.content[:offset])["outputs"]:
        data_type, element_type = _ELEMENT_TYPES[output["name"]]
        num_bytes = output["parameters"]["binary_data_size"]
        content = answer.content[offset : offset + num_bytes]
        if output["datatype"] != data_type or len(content) != num_bytes:
            raise ValueError(f"{output['name']} came as {output['datatype']} of {len(content)} bytes")
        tensors[output["name"]] = np.frombuffer(content, element_type).reshape(output["shape"])
        offset += num_bytes
    return tensors


def _require_ok(answer: HttpAnswer) -> None:
    if answer.status == HTTPStatus.OK:
        return
    text = _error_text(answer)
    message = f"{answer.status}: {text}"
    if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE) or _DEAD_STUB in text:
        raise ModelGoneError(message)
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
