"""An untrained policy of the `sawyer` body, whose chunks a few steps of a real task are played with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from policy.checkpoint import write_checkpoint
from policy.config import ConvolutionalSettings, ModelConfig
from policy.embodiment import EmbodimentSpec
from policy.policy import Policy
from policy.request import ChunkRequest
from policy.trunk import TrunkConfig
from policy.vla import build_vla
from policy.vocabulary import train_tokenizer
from training.simulation.bodies.sawyer import SPEC

_TRUNK = TrunkConfig(width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=64)


@pytest.fixture(scope="session")
def sawyer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks of 4 actions, 2 of them played, prefixes of 1."""
    tokenizer = train_tokenizer(["press the button"])
    config = ModelConfig(
        size="toy", num_embodiments=1, max_cameras=len(SPEC.cameras), max_state_dim=SPEC.state_dim,
        max_action_dim=SPEC.action_dim, image_size=16, interpolation="bilinear", action_horizon=4,
        execution_horizon=2, history_steps=3, num_inference_steps=2, max_inference_steps=8, noise_scale=1.0,
        latent_dim=16, num_soft_tokens=1, encoder=_TRUNK, decoder=_TRUNK, max_inference_delay=1,
        backbone=ConvolutionalSettings(
            vocabulary=tokenizer.get_vocab_size(), num_keypoints=4, channels=(4, 8, 8, 8), trunk=_TRUNK
        ),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vla = build_vla(config, tokenizer)
        # The decoder starts at zero velocity; chunks must still differ.
        torch.nn.init.normal_(vla.prior.decoder.velocity_out.weight, std=0.3)
    statistics = [{side: _statistics(SPEC, side) for side in ("state", "action")}]
    policy = Policy(vla=vla, specs=[SPEC], statistics=statistics, manifest={}, revision="")
    frames = {camera.name: torch.zeros(camera.height, camera.width, 3, dtype=torch.uint8) for camera in SPEC.cameras}
    asked = ChunkRequest(
        embodiment=SPEC.name, images=frames, state=torch.zeros(SPEC.state_dim), instruction="press the button", seed=7
    )
    request = replace(asked, num_inference_steps=2)
    directory = tmp_path_factory.mktemp("playback") / "checkpoint"
    write_checkpoint(
        directory,
        vla=vla,
        specs=[SPEC],
        statistics=statistics,
        probe=[(request, policy.predict_chunk([request])[0])],
        manifest={"method": "none", "variant": "history", "data": {}, "training": {}, "metrics": {}, "git_commit": ""},
    )
    return directory


def _statistics(spec: EmbodimentSpec, side: str) -> dict[str, list[float]]:
    dim = spec.state_dim if side == "state" else spec.action_dim
    low, high = [-1.0] * dim, [1.0] * dim
    return {"min": low, "max": high, "q01": low, "q99": high, "mean": [0.0] * dim, "std": [1.0] * dim}
