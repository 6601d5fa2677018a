"""What runs inside Triton: requests become one `Policy.predict_chunk` call, chunks become responses.

Owns the way from Triton's tensors to ChunkRequest and back. Tensors cross as DLPack only: the stub of the pytriton
wheel corrupts numpy arrays silently under numpy 2, and a BYTES tensor is a numpy array. Does not own batching (Triton),
limits (the gateway) or the model (policy/). Imported by the model.py that repository.py writes; only Triton can import
it.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  # comes with Triton's python backend
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from policy.embodiment import EmbodimentSpec
from policy.policy import Policy
from policy.request import ChunkRequest, RealTimeChunking
from service.background import in_background
from service.collection import exempt_what_is_there
from service.inference import BatchAnswer, load_policy, predict_batch
from service.triton.tensors import CHUNK, ELSEWHERE, INT64_BYTES, METHODS, REQUEST_HEAD, UNREADABLE


class TritonPythonModel:
    """One revision. Triton calls `initialize` once, then `execute` with the requests of a batch, on one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raises CheckpointError, which Triton answers the load call with."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        torch.set_num_threads(int(settings["threads"]))
        device = settings["device"]
        if args["model_instance_kind"] == "GPU":
            device = f"cuda:{args['model_instance_device_id']}"
        load = partial(
            load_policy,
            Path(settings["checkpoint"]),
            device=device,
            dtype=settings["dtype"],
            largest_batch=int(json.loads(args["model_config"])["max_batch_size"]),
        )
        # OpenMP's thread count belongs to the thread that calls torch: this one answers.
        self._policy = in_background(partial(_on_threads, int(settings["threads"]), load))
        self._specs = tuple(self._policy.embodiments.values())
        self._shares_memory = settings["shares_memory"] == "true"
        # The process ends with its model.
        exempt_what_is_there()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        read = partial(_read, specs=self._specs, shares_memory=self._shares_memory)
        answer = predict_batch(self._policy, [partial(read, request) for request in requests])
        return [_failure(chunk) if isinstance(chunk, Exception) else _answer(chunk, answer) for chunk in answer.chunks]


def _on_threads(num_threads: int, load: Callable[[], Policy]) -> Policy:
    torch.set_num_threads(num_threads)
    return load()


def _read(request: Any, *, specs: Sequence[EmbodimentSpec], shares_memory: bool) -> ChunkRequest:
    (tensor,) = request.inputs()
    content = from_dlpack(tensor.to_dlpack())[0]
    head = _int64(content, 0, len(REQUEST_HEAD))
    if head[0] == ELSEWHERE:
        content = read_elsewhere(head, shares_memory=shares_memory)
        head = _int64(content, 0, len(REQUEST_HEAD))
    embodiment_index, seed, num_inference_steps, num_history_steps, num_instruction_bytes, *chunking = head
    spec = specs[embodiment_index]
    num_head = len(head) + 2 * len(spec.camera_names)
    sizes = _int64(content, len(head), num_head)
    heights, widths = sizes[::2], sizes[1::2]
    num_pixels = [height * width * 3 for height, width in zip(heights, widths, strict=True)]
    end = len(content) - sum(num_pixels)
    pixels = content[end:].split(num_pixels)
    instruction = content[end - num_instruction_bytes : end]
    floats = content[INT64_BYTES * num_head : end - num_instruction_bytes].view(torch.float32)
    lengths = [spec.state_dim, num_history_steps * spec.state_dim, num_history_steps * spec.action_dim]
    state, history_states, history_actions, of_chunking = floats.split([*lengths, len(floats) - sum(lengths)])
    return ChunkRequest(
        embodiment=spec.name,
        images={
            name: frame.view(height, width, 3)
            for name, frame, height, width in zip(spec.camera_names, pixels, heights, widths, strict=True)
        },
        state=state,
        instruction=bytes(instruction.tolist()).decode(),
        history_states=history_states.view(num_history_steps, spec.state_dim),
        history_actions=history_actions.view(num_history_steps, spec.action_dim),
        seed=seed,
        num_inference_steps=num_inference_steps,
        real_time_chunking=_chunking(chunking, of_chunking, spec),
    )


def read_elsewhere(head: Sequence[int], *, shares_memory: bool) -> Tensor:
    """The request that lies where `head`, an ELSEWHERE_HEAD, says: uint8 [num_bytes]. Raises RuntimeError otherwise."""
    if not shares_memory:
        raise RuntimeError(f"{UNREADABLE}: this model takes whole requests only")
    _, process_id, file_descriptor, token, num_bytes = head
    try:
        memory = _memory(f"/proc/{process_id}/fd/{file_descriptor}", INT64_BYTES + num_bytes)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{UNREADABLE}: {error}") from None
    if int.from_bytes(memory[:INT64_BYTES], "little") != token:
        memory.close()
        raise RuntimeError(f"{UNREADABLE}: the request was given up before the model came to it")
    return torch.frombuffer(memory, dtype=torch.uint8)[INT64_BYTES:]


def _memory(path: str, num_bytes: int) -> mmap.mmap:
    # The number may be something else's by now: that must not be waited for.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # A copy on writing, for torch wants what it could write to.
        return mmap.mmap(fd, num_bytes, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)


def _int64(content: Tensor, start: int, stop: int) -> list[int]:
    return content[INT64_BYTES * start : INT64_BYTES * stop].view(torch.int64).tolist()


def _chunking(head: Sequence[int], floats: Tensor, spec: EmbodimentSpec) -> RealTimeChunking | None:
    """`floats` are the previous actions and the weight."""
    num_previous_actions, inference_delay, execution_horizon, method = head
    if not num_previous_actions:
        return None
    return RealTimeChunking(
        previous_actions=floats[:-1].view(num_previous_actions, spec.action_dim),
        inference_delay=inference_delay,
        execution_horizon=execution_horizon,
        method=METHODS[method],
        max_guidance_weight=floats[-1].item(),
    )


def _answer(chunk: Tensor, answer: BatchAnswer) -> Any:
    actions = chunk.float().contiguous()
    head = torch.tensor([answer.inference_ns, answer.batch_size, *actions.shape])
    content = torch.cat((head.view(torch.uint8), actions.view(-1).view(torch.uint8)))
    return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(CHUNK, to_dlpack(content[None]))])


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
