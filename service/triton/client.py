"""One channel to one tritonserver: load a model, ask it for a chunk.

Owns the way from BackendRequest to Triton's tensors and back, and the translation of Triton's errors. Does not own
readiness, restarts or who may send when (backend.py). Requests are built as protobuf messages: the tritonclient package
would add its own wrappers and 50 us to each.
"""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from service.backend import (
    BackendChunk,
    BackendDeadlineError,
    BackendError,
    BackendFailedError,
    BackendRequest,
    BackendUnavailableError,
)
from service.revision import RevisionError
from service.triton.tensors import ACTIONS, FLOATS, INSTRUCTION, META, PIXELS, TIMING

_CHANNEL_OPTIONS = (
    # The gateway has its own caps; here both ends are ours.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Two services in one process must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)
# What Triton says, with status INTERNAL and until the model is loaded again, when a stub has died.
_DEAD_STUB = "is not healthy"


class ModelDeadError(BackendUnavailableError):
    """The process behind a model has died; Triton itself goes on and would never restart it."""


class TritonClient:
    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Ends calls in progress with BackendUnavailableError."""
        await self._channel.close()

    async def load(self, model: str, *, timeout_s: float) -> None:
        """Returns once the model is initialised. Raises RevisionError when it refuses, else a BackendError."""
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT):
                raise RevisionError(_load_problem(error.details() or "")) from None
            raise _translated(error) from None

    async def unload(self, model: str, *, timeout_s: float) -> None:
        """Returns at once; Triton finishes what is in flight. Raises a BackendError."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        try:
            await self._stub.RepositoryModelUnload(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None

    async def infer(self, model: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        """Raises a BackendError; ModelDeadError when the model has to be loaded again."""
        started_s = time.perf_counter()
        call = self._stub.ModelInfer(encode_request(model, request), timeout=timeout_s)
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except asyncio.CancelledError:
            # A closed channel cancels its calls with the same exception that cancels a task.
            if not call.cancelled() or _being_cancelled():
                raise
            raise BackendUnavailableError("the connection to Triton was closed") from None
        actions, inference_s = decode_response(response)
        queue_s = max(0.0, time.perf_counter() - started_s - inference_s)
        return BackendChunk(actions=actions, inference_s=inference_s, queue_s=queue_s)


def encode_request(model: str, request: BackendRequest) -> service_pb2.ModelInferRequest:
    """The message for one request, laid out as tensors.py says."""
    meta = [request.embodiment_index, request.seed, request.num_inference_steps, len(request.history_states)]
    for frame in request.images:
        meta += frame.shape[:2]
    floats = (request.state, request.history_states, request.history_actions)
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, data_type, element_bytes, content in (
        (PIXELS, "UINT8", 1, b"".join(np.ascontiguousarray(frame).data for frame in request.images)),
        (INSTRUCTION, "UINT8", 1, request.instruction.encode()),
        (FLOATS, "FP32", 4, b"".join(np.ascontiguousarray(array, np.float32).data for array in floats)),
        (META, "INT64", 8, np.array(meta, np.int64).tobytes()),
    ):
        message.inputs.add(name=name, datatype=data_type, shape=(1, len(content) // element_bytes))
        message.raw_input_contents.append(content)
    return message


def decode_response(response: service_pb2.ModelInferResponse) -> tuple[np.ndarray, float]:
    """float32 actions [action_horizon, action_dim] and the seconds of inference. Raises BackendFailedError."""
    contents = {
        output.name: (output.shape, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    try:
        (_, horizon, action_dim), raw_actions = contents[ACTIONS]
        actions = np.frombuffer(raw_actions, np.float32).reshape(horizon, action_dim)
        inference_ns = int(np.frombuffer(contents[TIMING][1], np.int64)[0])
    except (KeyError, ValueError, IndexError) as error:
        raise BackendFailedError(f"Triton's answer is not a chunk: {error}") from None
    return actions, inference_ns / 1e9


def _translated(error: grpc.aio.AioRpcError) -> BackendError:
    code, details = error.code(), error.details() or ""
    message = f"{code.name}: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return BackendDeadlineError(message)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED):
        return BackendUnavailableError(message)
    if code is grpc.StatusCode.INTERNAL and _DEAD_STUB in details:
        return ModelDeadError(message)
    return BackendFailedError(message)


def _load_problem(details: str) -> str:
    """The exception that `initialize` raised, out of Triton's account of it."""
    text = details.split("\n\nAt:")[0]
    for marker in ("CheckpointError: ", "Internal: "):
        if marker in text:
            return text.split(marker, 1)[1].strip().rstrip(";")
    return text


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
