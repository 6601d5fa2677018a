"""From a trained VLA to the checkpoint that is served: weights, specs, statistics, words, a probe, its making."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policy.checkpoint import write_checkpoint
from policy.config import ModelConfig
from policy.models import Model
from policy.policy import Policy
from policy.request import ChunkRequest
from training.corpus import Corpus
from training.data.pack import Pack
from training.data.windows import gather_windows

_PROBE_FRAME = 12  # far enough into an episode to have a whole history


def export_checkpoint(
    corpus: Corpus,
    vla: Model,
    directory: Path,
    *,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    made_by: Mapping[str, Any] | None = None,
) -> str:
    """Write the checkpoint and return its revision. Raises FileExistsError when `directory` exists.

    `made_by` takes the place of paper A's method, variant and recipe in the manifest, and adds to it.
    """
    requests = [probe_request(pack, corpus.config) for pack in _one_per_body(corpus.packs)]
    policy = Policy(vla=vla.to("cpu"), specs=corpus.specs, statistics=corpus.statistics, manifest={}, revision="")
    return write_checkpoint(
        directory,
        vla=vla,
        specs=corpus.specs,
        statistics=corpus.statistics,
        probe=[(request, chunk) for request, chunk in zip(requests, policy.predict_chunk(requests), strict=True)],
        manifest={
            "method": "action prior from state-action trajectories (arXiv 2606.26095)",
            "variant": corpus.parent.manifest["variant"] if corpus.parent else corpus.recipe.variant,
            "recipe": corpus.recipe.to_json(),
            **(made_by or {}),
            "backbone": corpus.backbone_manifest,
            **corpus.layers_manifest,
            "data": {
                pack.task: {
                    "embodiment": pack.spec.name,
                    "instructions": list(pack.instructions),
                    "num_episodes": pack.num_episodes,
                    "num_frames": pack.num_frames,
                    "first_seed": int(pack.episode_seed.min()),
                    "last_seed": int(pack.episode_seed.max()),
                    "dataset_sha256": pack.source_sha256,
                }
                for pack in corpus.packs
            },
            "training": {**training, "hardware": hardware()},
            "metrics": dict(metrics),
            "git_commit": git_commit(),
        },
    )


def probe_request(pack: Pack, config: ModelConfig) -> ChunkRequest:
    """A recorded observation with its history: what the served model must still answer as it did here."""
    frames = np.array([min(_PROBE_FRAME, pack.num_frames - 1)])
    windows = gather_windows(pack, frames, horizon=1, history_steps=config.history_steps)
    real = windows.history_mask[0]
    return ChunkRequest(
        embodiment=pack.spec.name,
        images={name: torch.from_numpy(np.array(pack.images[name][frames[0]])) for name in pack.spec.camera_names},
        state=torch.from_numpy(windows.states[0, 0].copy()),
        instruction=pack.instructions_of(frames)[0],
        history_states=torch.from_numpy(windows.history_states[0, real]),
        history_actions=torch.from_numpy(windows.history_actions[0, real]),
        seed=1,
        num_inference_steps=config.num_inference_steps,
    )


def hardware() -> dict[str, Any]:
    """What the run was made on, as far as the standard library and torch can tell."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "processor": models[0] if models else platform.processor(),
        "num_cpus": os.cpu_count(),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_commit() -> str:
    """The commit this code stands on, "-dirty" appended when files differ from it; empty outside a repository."""
    root = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _one_per_body(packs: Sequence[Pack]) -> list[Pack]:
    return list({pack.spec.name: pack for pack in reversed(packs)}.values())[::-1]
