"""Round trips beside the bare forward: what the whole way from a robot to the model and back adds.

Owns the four ways of asking the same question, their interleaving and the ratio. Bare forward and round trip run the
same checkpoint, device, precision and thread count, on the same frames, in turns of a fraction of a second and never at
the same time; so whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import grpc
import numpy as np

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_duration, decode_tensor
from service.backend import BackendRequest
from service.bench.requests import chunk_requests, decoded_request
from service.bench.served import POLICY, served
from service.model_settings import BackendKind, ModelSettings, openmp_environment
from service.probe import ProbeCase, read_probe
from service.revision import Revision, read_revision

BARE = "bare_forward"
IN_PROCESS = "in_process_with_decode"
UNARY = "predict_chunk"
STREAM = "stream_chunks"
# Of overhead_ratio, at most.
GOAL = 1.1
_TIMEOUT_S = 30.0
_BLOCK_CALLS = 20
# The first calls of a block are not counted: they find the caches as the block before left them.
_SETTLING_CALLS = 3
_SERVER_SPANS = ("decode", "queue", "inference", "total")


class DeviceMissingError(Exception):
    """This machine has no such device."""


@dataclass(frozen=True, kw_only=True)
class OverheadSettings:
    checkpoint: Path
    # Another architecture size, of random weights, for the same bodies; empty measures the checkpoint itself.
    size: Literal["", "tiny", "small"] = ""
    # Empty takes the first case of the probe.
    embodiment: str = ""
    iterations: int = 200
    backend: BackendKind = "triton"
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class _Timed:
    seconds: float
    actions: np.ndarray
    # Only for answers of the service.
    timing: policy_pb2.Timing | None = None


def measure_overhead(settings: OverheadSettings) -> dict[str, Any]:
    """p50, p90 and p99 of each way, and `overhead_ratio`: p50 of PredictChunk over p50 of the bare forward.

    Raises RevisionError, DeviceMissingError, ServiceStartError; ValueError when the probe does not know the embodiment.
    """
    with of_size(settings.checkpoint, settings.size) as checkpoint:
        return _measure(settings, checkpoint)


@contextlib.contextmanager
def of_size(checkpoint: Path, size: Literal["", "tiny", "small"]) -> Iterator[Path]:
    """The checkpoint itself without a size, else one of random weights for its bodies, while the block lasts."""
    if not size:
        yield checkpoint
        return
    from service.bench.untrained import write_untrained

    with tempfile.TemporaryDirectory() as directory:
        write_untrained(checkpoint, size, Path(directory) / size)
        yield Path(directory) / size


def _measure(settings: OverheadSettings, checkpoint: Path) -> dict[str, Any]:
    revision = read_revision(checkpoint, policy=POLICY)
    case = probe_case(revision, settings.embodiment)
    messages = chunk_requests(revision, case, policy=POLICY)
    requests = [decoded_request(message, case, revision) for message in messages]
    forward = BareForward(revision, settings.model)
    with (
        served(checkpoint, settings.model, backend=settings.backend) as service,
        grpc.insecure_channel(service.grpc_address) as channel,
    ):
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        with _Stream(stub) as stream:
            ways: dict[str, Callable[[int], _Timed]] = {
                BARE: lambda i: _in_process(forward, lambda: requests[i]),
                IN_PROCESS: lambda i: _in_process(forward, lambda: decoded_request(messages[i], case, revision)),
                UNARY: lambda i: _unary(stub, messages[i]),
                STREAM: lambda i: stream.ask(messages[i]),
            }
            runs = _interleaved(ways, settings.iterations, len(messages))
    return _result(settings, revision, case, runs)


def missed_goals(result: dict[str, Any]) -> list[str]:
    if result["overhead_ratio"] <= result["goal"]:
        return []
    return [
        f"p50 of a round trip is {result['overhead_ratio']:.3f} times the bare forward's, at most {result['goal']:g}"
    ]


def format_overhead(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'ms':<24}{'p50':>9}{'p90':>9}{'p99':>9}"]
    for name, row in result["ways"].items():
        lines.append(f"{name:<24}{row['p50_ms']:>9.2f}{row['p90_ms']:>9.2f}{row['p99_ms']:>9.2f}")
    for name, row in result["server_spans"].items():
        lines.append(f"{'  server: ' + name:<24}{row['p50_ms']:>9.2f}{row['p90_ms']:>9.2f}{row['p99_ms']:>9.2f}")
    lines.append(
        f"overhead_ratio {result['overhead_ratio']:.3f} (goal at most {result['goal']:g}), "
        f"on the stream {result['stream_overhead_ratio']:.3f}; "
        f"median of {len(result['round_ratios'])} rounds {result['median_round_ratio']:.3f} "
        f"(95 % {result['median_round_ratio_interval'][0]:.3f} to {result['median_round_ratio_interval'][1]:.3f}); "
        f"{result['iterations']} iterations, embodiment {result['embodiment']}, {result['threads']} thread(s), "
        f"{result['dtype']} on {result['device']}; actions differ by at most {result['max_action_difference']:.1e}"
    )
    return "\n".join(lines)


def probe_case(revision: Revision, embodiment: str) -> ProbeCase:
    """The first of the checkpoint's own questions that this body asks; "" is any. Raises ValueError."""
    names = [described.name for described in revision.description.embodiments]
    cases = read_probe(revision)
    for case in cases:
        if embodiment in ("", names[case.request.embodiment_index]):
            return case
    probed = sorted({names[case.request.embodiment_index] for case in cases})
    raise ValueError(f"the probe has no case of embodiment {embodiment!r}, it has {probed}")


class BareForward:
    """The model in this process, as a batch sees it: requests in, actions on the CPU out."""

    def __init__(self, revision: Revision, model: ModelSettings) -> None:
        # Read by OpenMP when torch is imported, which therefore comes after.
        os.environ |= openmp_environment(model.threads)
        import torch

        from policy.policy import Policy

        if model.device == "cuda" and not torch.cuda.is_available():
            raise DeviceMissingError("torch sees no CUDA device here")
        self.device_name = torch.cuda.get_device_name() if model.device == "cuda" else "cpu"
        torch.set_num_threads(model.threads)
        self._policy = Policy.from_checkpoint(revision.directory, device=model.device, dtype=model.dtype)
        self._specs = tuple(self._policy.embodiments.values())

    def __call__(self, requests: Sequence[BackendRequest]) -> list[np.ndarray]:
        from service.local import to_chunk_request

        chunks = self._policy.predict_chunk([to_chunk_request(self._specs, request) for request in requests])
        # To the CPU: a GPU has only then computed them.
        return [chunk.to("cpu").numpy() for chunk in chunks]


def _in_process(forward: BareForward, request: Callable[[], BackendRequest]) -> _Timed:
    started_s = time.perf_counter()
    (actions,) = forward([request()])
    return _Timed(seconds=time.perf_counter() - started_s, actions=actions)


def _unary(stub: policy_pb2_grpc.PolicyServiceStub, message: policy_pb2.PredictChunkRequest) -> _Timed:
    started_s = time.perf_counter()
    response = stub.PredictChunk(message, timeout=_TIMEOUT_S)
    return _answered(started_s, response)


def _answered(started_s: float, response: policy_pb2.PredictChunkResponse) -> _Timed:
    actions = decode_tensor(response.actions, field="actions", dtype=np.float32, shape=(None, None))
    return _Timed(seconds=time.perf_counter() - started_s, actions=actions, timing=response.timing)


class _Stream:
    """One StreamChunks call, asked one question at a time."""

    def __init__(self, stub: policy_pb2_grpc.PolicyServiceStub) -> None:
        self._questions: SimpleQueue[policy_pb2.StreamChunksRequest | None] = SimpleQueue()
        self._answers = stub.StreamChunks(self._outgoing())

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._questions.put(None)
        self._answers.cancel()

    def ask(self, message: policy_pb2.PredictChunkRequest) -> _Timed:
        started_s = time.perf_counter()
        question = policy_pb2.StreamChunksRequest(request=message)
        question.timeout.FromSeconds(int(_TIMEOUT_S))
        self._questions.put(question)
        answer = next(self._answers)
        if answer.WhichOneof("answer") != "chunk":
            raise RuntimeError(f"the stream answered {answer.error.message}")
        return _answered(started_s, answer.chunk)

    def _outgoing(self) -> Iterator[policy_pb2.StreamChunksRequest]:
        while (question := self._questions.get()) is not None:
            yield question


def _interleaved(
    ways: dict[str, Callable[[int], _Timed]], iterations: int, num_variants: int
) -> dict[str, list[_Timed]]:
    """Blocks of every way on the same questions, the ways in another order each round.

    Blocks rather than single calls: a forward in this process right before a round trip would have emptied the caches
    that the service finds filled when its robots live elsewhere.
    """
    order, rng = list(ways), random.Random(0)
    runs: dict[str, list[_Timed]] = {name: [] for name in ways}
    for start in range(0, iterations, _BLOCK_CALLS):
        rng.shuffle(order)
        for name in order:
            for call in range(_SETTLING_CALLS):
                ways[name](call % num_variants)
            for call in range(start, min(start + _BLOCK_CALLS, iterations)):
                runs[name].append(ways[name](call % num_variants))
    return runs


def _result(
    settings: OverheadSettings, revision: Revision, case: ProbeCase, runs: dict[str, list[_Timed]]
) -> dict[str, Any]:
    ways = {name: _percentiles([timed.seconds for timed in timed_runs]) for name, timed_runs in runs.items()}
    round_ratios = _round_ratios(runs)
    timings = [timed.timing for timed in runs[UNARY] if timed.timing is not None]
    return {
        "overhead_ratio": ways[UNARY]["p50_ms"] / ways[BARE]["p50_ms"],
        "goal": GOAL,
        "stream_overhead_ratio": ways[STREAM]["p50_ms"] / ways[BARE]["p50_ms"],
        "median_round_ratio": float(np.median(round_ratios)),
        "median_round_ratio_interval": median_interval(round_ratios),
        "round_ratios": round_ratios,
        "ways": ways,
        "server_spans": {
            span: _percentiles([decode_duration(getattr(timing, span), field=span) for timing in timings])
            for span in _SERVER_SPANS
        },
        "max_action_difference": max(
            float(np.abs(timed.actions - bare.actions).max())
            for name in (IN_PROCESS, UNARY, STREAM)
            for timed, bare in zip(runs[name], runs[BARE], strict=True)
        ),
        "iterations": settings.iterations,
        "size": settings.size,
        "revision": revision.revision,
        "embodiment": revision.description.embodiments[case.request.embodiment_index].name,
        "num_cameras": len(case.request.images),
        "history_steps": len(case.request.history_states),
        "num_inference_steps": case.request.num_inference_steps,
        "backend": settings.backend,
        "threads": settings.model.threads,
        "dtype": settings.model.dtype,
        "device": settings.model.device,
        "num_cpus": os.cpu_count(),
    }


def _round_ratios(runs: dict[str, list[_Timed]]) -> list[float]:
    """Round trip over bare forward, block by block: how much the ratio moves within one run."""

    def block_medians(name: str) -> list[float]:
        seconds = [timed.seconds for timed in runs[name]]
        return [float(np.median(seconds[i : i + _BLOCK_CALLS])) for i in range(0, len(seconds), _BLOCK_CALLS)]

    return [unary / bare for unary, bare in zip(block_medians(UNARY), block_medians(BARE), strict=True)]


def median_interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the medians of rounds drawn again, with replacement."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99)) * 1e3
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}
