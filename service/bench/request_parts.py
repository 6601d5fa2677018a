"""What a chunk's options cost: history, guidance and prefix beside a chunk without them, interleaved, in process.

Owns the rounds and their ratios. No service is started: what the wire adds is a few bytes.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from service.bench.overhead import DeviceMissingError, median_interval, of_size
from service.bench.served import POLICY
from service.model_settings import ModelSettings, openmp_environment
from service.revision import read_revision

BATCH_SIZES = (1, 8)
PLAIN = "plain"
_BLOCK_CALLS = 4


@dataclass(frozen=True, kw_only=True)
class RequestPartsSettings:
    checkpoint: Path
    # Another architecture size, of random weights, for the same bodies; empty measures the checkpoint itself.
    size: Literal["", "tiny", "small"] = ""
    rounds: int = 8
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}, expected at least 1")


def measure_request_parts(settings: RequestPartsSettings) -> dict[str, Any]:
    """p50 of each way and batch size, and the median of its per-round ratios to a plain chunk.

    Raises RevisionError, DeviceMissingError, and CheckpointError for weights that do not fit.
    """
    # Read by OpenMP when torch is imported, which therefore comes after.
    os.environ |= openmp_environment(settings.model.threads)
    with of_size(settings.checkpoint, settings.size) as checkpoint:
        revision = read_revision(checkpoint, policy=POLICY)
        ways = _ways(checkpoint, settings.model)
    rows = []
    for batch_size in BATCH_SIZES:
        seconds = _interleaved(ways, batch_size, settings.rounds)
        plain = seconds[PLAIN]
        for name, blocks in seconds.items():
            ratios = [own / other for own, other in zip(blocks, plain, strict=True)]
            rows.append(
                {
                    "way": name,
                    "batch_size": batch_size,
                    "p50_ms": float(np.median(blocks)) * 1e3,
                    "added_ms": float(np.median(np.subtract(blocks, plain))) * 1e3,
                    "ratio": float(np.median(ratios)),
                    "ratio_interval": median_interval(ratios),
                }
            )
    return {
        "revision": revision.revision,
        "size": settings.size,
        "trained_for_a_prefix": bool(revision.description.max_inference_delay),
        "history_steps": revision.description.history_steps,
        "num_inference_steps": revision.description.num_inference_steps,
        "rounds": settings.rounds,
        "device": settings.model.device,
        "dtype": settings.model.dtype,
        "threads": settings.model.threads,
        "num_cpus": os.cpu_count(),
        "rows": rows,
    }


def format_request_parts(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'':<10}{'batch':>6}{'p50 ms':>10}{'added ms':>10}{'ratio':>8}  95 %"]
    for row in result["rows"]:
        low, high = row["ratio_interval"]
        lines.append(
            f"{row['way']:<10}{row['batch_size']:>6}{row['p50_ms']:>10.2f}{row['added_ms']:>10.2f}"
            f"{row['ratio']:>8.3f}  {low:.3f} to {high:.3f}"
        )
    untrained = "" if result["trained_for_a_prefix"] else "; weights not trained for a prefix, which take as long"
    size = f"{result['size']} untrained, " if result["size"] else ""
    lines.append(
        f"{size}{result['rounds']} rounds, history of {result['history_steps']} steps, "
        f"{result['num_inference_steps']} Euler steps, {result['threads']} thread(s), "
        f"{result['dtype']} on {result['device']}{untrained}"
    )
    return "\n".join(lines)


def _ways(checkpoint: Path, model: ModelSettings) -> Mapping[str, Callable[[int], None]]:
    """By name: one batch of so many chunks."""
    import torch

    from policy.checkpoint import load_probe, read_checkpoint
    from policy.policy import Policy
    from policy.request import RealTimeChunking

    if model.device == "cuda" and not torch.cuda.is_available():
        raise DeviceMissingError("torch sees no CUDA device here")
    torch.set_num_threads(model.threads)
    parts = read_checkpoint(checkpoint)
    config = parts.vla.config
    parts.vla.config = replace(config, max_inference_delay=config.action_horizon - 1)
    policy = Policy(
        vla=parts.vla,
        specs=parts.specs,
        statistics=parts.statistics,
        manifest=parts.manifest,
        revision=parts.revision,
        device=model.device,
        dtype=model.dtype,
    )
    request, chunk = load_probe(checkpoint)[0]
    plain = replace(request, history_states=None, history_actions=None)
    overlap = max(1, config.action_horizon - config.execution_horizon)
    requests = {PLAIN: plain, "history": request}
    for method in ("guidance", "prefix"):
        chunking = RealTimeChunking(
            previous_actions=chunk[-overlap:],
            inference_delay=min(overlap, config.action_horizon - 1, 4),
            execution_horizon=config.execution_horizon,
            method=method,
        )
        requests[method] = replace(plain, real_time_chunking=chunking)

    def way(name: str) -> Callable[[int], None]:
        def predict(batch_size: int) -> None:
            for actions in policy.predict_chunk([requests[name]] * batch_size):
                actions.to("cpu")  # a GPU has only then computed them

        return predict

    return {name: way(name) for name in requests}


def _interleaved(ways: Mapping[str, Callable[[int], None]], batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Median seconds of a block, round by round, the ways in another order each round; the first call settles."""
    order, rng = list(ways), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(batch_size)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            block = []
            for _ in range(_BLOCK_CALLS + 1):
                started_s = time.perf_counter()
                ways[name](batch_size)
                block.append(time.perf_counter() - started_s)
            seconds[name].append(float(np.median(block[1:])))
    return seconds
