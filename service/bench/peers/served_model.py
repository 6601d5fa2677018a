"""A checkpoint as the peers' servers call it: one observation in, one chunk out, on the caller's thread.

Owns loading it like a revision (same threads, precision, OpenMP) and the flags that every peer's program has. Each peer
runs this and nothing else of ours on the way of a question.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np

from service.model_settings import openmp_environment

if TYPE_CHECKING:
    from policy.policy import Policy


@dataclass(frozen=True, kw_only=True)
class ServedModelSettings:
    checkpoint: Path
    # Empty where the policy drives one body.
    embodiment: str = ""
    threads: int = 1
    dtype: Literal["fp32", "bf16"] = "fp32"


class ServedModel:
    """A policy and the body that is asked for."""

    def __init__(self, settings: ServedModelSettings) -> None:
        """Raises CheckpointError; ValueError for an embodiment that the policy has not."""
        # Read by OpenMP when torch is imported, which therefore comes after.
        os.environ |= openmp_environment(settings.threads)
        import torch

        from policy.policy import Policy

        torch.set_num_threads(settings.threads)
        self._policy: Policy = Policy.from_checkpoint(settings.checkpoint, dtype=settings.dtype)
        names = list(self._policy.embodiments)
        name = settings.embodiment or (names[0] if len(names) == 1 else "")
        if name not in names:
            raise ValueError(f"embodiment {settings.embodiment!r} came, the policy drives {names}")
        self.spec = self._policy.embodiments[name]
        self.action_horizon = self._policy.config.action_horizon

    def chunk(self, images: Mapping[str, np.ndarray], state: np.ndarray, instruction: str, seed: int) -> np.ndarray:
        """float32 [action_horizon, action_dim] for uint8 [height, width, 3] frames and float32 [state_dim]."""
        import torch

        from policy.request import ChunkRequest

        request = ChunkRequest(
            embodiment=self.spec.name,
            images={camera: torch.from_numpy(np.array(images[camera])) for camera in self.spec.camera_names},
            state=torch.from_numpy(np.array(state, np.float32)),
            instruction=instruction,
            seed=seed,
        )
        return self._policy.predict_chunk([request])[0].numpy()

    def warm_up(self, size: int = 96) -> None:
        """Runs once: no robot pays for a first time."""
        frames = {camera: np.zeros((size, size, 3), np.uint8) for camera in self.spec.camera_names}
        self.chunk(frames, np.zeros(self.spec.state_dim, np.float32), "warm up", seed=0)


def model_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--embodiment", default="", help="may be left out where the policy drives one body")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="default %(default)s")
    return parser


def model_settings(arguments: argparse.Namespace) -> ServedModelSettings:
    return ServedModelSettings(
        checkpoint=arguments.checkpoint,
        embodiment=arguments.embodiment,
        threads=arguments.threads,
        dtype=arguments.dtype,
    )


def announce(output: TextIO, **ready: Any) -> None:
    """The line that says where it listens."""
    print(json.dumps({"event": "ready", **ready}), file=output, flush=True)
