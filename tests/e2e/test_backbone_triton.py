"""From a pretrained model's directory to chunks: stage 2 with LoRA and export by the command line, a real Triton."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from policy.policy import Policy
from policy.request import ChunkRequest
from service.model_settings import ModelSettings
from service.probe import read_probe
from service.revision import read_revision
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.installation import find_installation
from service.triton.server import TritonProcess, TritonProcessSettings
from training.__main__ import main
from training.data.lerobot.writer import LeRobotWriter

SPEC = EmbodimentSpec(
    name="slider",
    cameras=(Camera(name="front", height=32, width=48),),
    state=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    action=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    control_rate_hz=10.0,
)
RECIPE = {
    "name": "slide",
    "size": "tiny-vlm",
    "autocast": False,
    "data": {"tasks": ["slide"], "episodes_per_task": 2},
    "stage1": {"schedule": {"num_steps": 2}, "batch_size": 4},
    "stage2": {
        "schedule": {"num_steps": 4, "learning_rate": 0.03, "warmup_steps": 1, "ema_decay": 0.5},
        "batch_size": 4,
        "decay_steps": 2,
    },
}


def write_demonstrations(directory: Path) -> None:
    generator = np.random.default_rng(0)
    numeric = {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    features = {
        "observation.images.front": {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
        "observation.state": numeric,
        "action": numeric,
    }
    annotations = {"task": "slide", "embodiment": SPEC.to_json()}
    with LeRobotWriter(directory, fps=10.0, features=features, robot_type="slider", annotations=annotations) as writer:
        for seed in range(2):
            path = np.cumsum(generator.normal(size=(20, 2)), 0).astype(np.float32)
            frames = generator.integers(0, 256, (20, 32, 48, 3), dtype=np.uint8)
            writer.add_episode(
                {"observation.images.front": frames, "observation.state": path, "action": path + 1},
                "slide it over",
                seed=seed,
            )


@pytest.fixture
def checkpoint(save_vlm: Callable[..., Path], tmp_path: Path) -> Path:
    model = save_vlm(tmp_path / "model", "smolvlm", max_shard_size="300KB")
    write_demonstrations(tmp_path / "run" / "data" / "slide")
    (tmp_path / "slide.json").write_text(json.dumps(RECIPE))
    run = ["--recipe", str(tmp_path / "slide.json"), "--run", str(tmp_path / "run"), "--threads", "1"]
    for verb in ("stage2", "export"):
        assert main([verb, *run, "--backbone", str(model), "--tuning", "lora", "--lora-rank", "4"]) == 0
    # What is served needs neither the model's directory nor the run.
    return (tmp_path / "run" / "checkpoint").rename(tmp_path / "served")


@pytest.mark.asyncio
async def test_a_tuned_pretrained_model_is_served_with_the_chunks_it_gives_in_process(checkpoint: Path) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton's wheel is for Linux x86-64")
    revision, policy = read_revision(checkpoint, policy="slide"), Policy.from_checkpoint(checkpoint)
    (case,) = read_probe(revision)
    rng, chunks = np.random.default_rng(1), []
    backend = TritonBackend(
        TritonProcess(find_installation(), TritonProcessSettings(grace_s=2.0)),
        ModelSettings(max_batch_size=4),
        SupervisionSettings(),
    )
    try:
        await backend.start()
        await backend.load(revision)
        for instruction in ("slide it over", "leave it, please"):
            frame = rng.integers(0, 256, (32, 48, 3), np.uint8)
            asked = replace(case.request, images=(frame,), instruction=instruction, seed=5)
            chunk = await backend.predict(revision.revision, asked, timeout_s=30.0)
            request = ChunkRequest(
                embodiment=SPEC.name,
                images={"front": torch.from_numpy(frame)},
                state=torch.tensor(asked.state),
                instruction=instruction,
                history_states=torch.tensor(asked.history_states),
                history_actions=torch.tensor(asked.history_actions),
                seed=asked.seed,
                num_inference_steps=asked.num_inference_steps,
            )
            chunks.append(chunk.actions)
            np.testing.assert_allclose(chunk.actions, policy.predict_chunk([request])[0].numpy(), rtol=0, atol=1e-5)
        # The same noise both times: what was seen and asked is in the chunk.
        assert np.abs(chunks[0] - chunks[1]).max() > 1e-3
    finally:
        await backend.close()
