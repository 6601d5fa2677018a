"""Both stages on two toy bodies, for test_parallel.py: trained by one process as a module, by several as a program.

As a program under torchrun it does in order what its arguments say: STAGE:SHARING:UNTIL:DIRECTORY each.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from policy.config import ConvolutionalSettings, ModelConfig
from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from policy.normalization import Statistics
from policy.trunk import TrunkConfig
from policy.vocabulary import train_tokenizer
from training.corpus import Corpus
from training.data.pack import Pack
from training.loop import Schedule
from training.parallel import ALONE, Processes, Sharing, processes
from training.recipe import DataRecipe, Recipe, Stage1Recipe, Stage2Recipe
from training.stage1 import train_stage1
from training.stage2 import train_stage2

NUM_STEPS, IMAGE_SIZE = 4, 16
# Where the two bodies' dimensions, and episodes shorter than a chunk, give every process other counts of real entries.
BODIES, EPISODE_LENGTHS = {"arm": 3, "pair": 6}, (7, 3, 5)
_TRUNK = TrunkConfig(width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=64)


def corpus(*, history: bool = True) -> Corpus:
    specs = [_spec(name, dim) for name, dim in BODIES.items()]
    tokenizer = train_tokenizer(["move the arm", "hand it over"])
    trunk = {"encoder": _TRUNK, "decoder": _TRUNK}
    backbone = ConvolutionalSettings(
        vocabulary=tokenizer.get_vocab_size(), num_keypoints=4, channels=(4, 8, 8, 8), trunk=_TRUNK
    )
    config = ModelConfig(
        size="toy", num_embodiments=len(specs), max_cameras=1, max_state_dim=6, max_action_dim=6,
        image_size=IMAGE_SIZE, interpolation="bilinear", action_horizon=4, execution_horizon=2, history_steps=3,
        num_inference_steps=2, max_inference_steps=8, noise_scale=1.0, latent_dim=16, num_soft_tokens=1,
        backbone=backbone, **trunk,
    )  # fmt: skip
    schedule = Schedule(num_steps=NUM_STEPS, warmup_steps=2, log_every=1)
    recipe = Recipe(
        name="toy",
        size="tiny",
        autocast=False,
        data=DataRecipe(tasks=tuple(BODIES), episodes_per_task=len(EPISODE_LENGTHS)),
        stage1=Stage1Recipe(schedule=schedule, batch_size=6, num_draws=2),
        stage2=Stage2Recipe(schedule=schedule, batch_size=6, num_draws=2, decay_steps=2, history=history),
    )
    return Corpus(
        recipe=recipe,
        packs=[_pack(spec, seed) for seed, spec in enumerate(specs)],
        specs=specs,
        statistics=[_statistics(spec) for spec in specs],
        tokenizer=tokenizer,
        config=config,
    )


def train(stage: str, directory: Path, *, until: int = NUM_STEPS, members: Processes = ALONE) -> nn.Module:
    """Train "stage1", "stage2" or, without history, "stage2alone"."""
    if stage == "stage1":
        return train_stage1(corpus(), directory, until=until, processes=members)
    return train_stage2(corpus(history=stage == "stage2"), None, directory, until=until, processes=members)


def _spec(name: str, dim: int) -> EmbodimentSpec:
    group = Group(name="joints", dim=dim, kind=GroupKind.JOINT_POSITION, unit="rad")
    camera = Camera(name="front", height=IMAGE_SIZE, width=IMAGE_SIZE)
    return EmbodimentSpec(name=name, cameras=(camera,), state=(group,), action=(group,), control_rate_hz=20.0)


def _statistics(spec: EmbodimentSpec) -> Statistics:
    def side(dim: int) -> dict[str, list[float]]:
        return {"q01": [-2.0] * dim, "q99": [2.0] * dim, "mean": [0.0] * dim, "std": [1.0] * dim}

    return {"state": side(spec.state_dim), "action": side(spec.action_dim)}


def _pack(spec: EmbodimentSpec, seed: int) -> Pack:
    generator = np.random.default_rng(seed)
    length = np.array(EPISODE_LENGTHS)
    total = int(length.sum())

    def rows(dim: int) -> np.ndarray:
        return generator.normal(size=(total, dim)).astype(np.float32)

    return Pack(
        directory=Path(spec.name), source_sha256="", task=spec.name, instructions=(f"move the {spec.name}",), spec=spec,
        image_size=IMAGE_SIZE, state=rows(spec.state_dim), action=rows(spec.action_dim),
        executed_action=rows(spec.action_dim), environment_state=rows(2 + seed),
        environment_state_names=tuple("xyz"[: 2 + seed]),
        images={"front": generator.integers(0, 256, (total, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)},
        episode_start=np.cumsum(length) - length, episode_length=length, episode_seed=np.zeros_like(length),
        episode_instruction=np.zeros_like(length),
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    """Leaves what each training returned beside its state, as the process that writes has it."""
    torch.set_num_threads(1)
    with processes("ddp", "cpu") as (group, _):
        for argument in arguments:
            stage, sharing, until, directory = argument.split(":", 3)
            members = replace(group, sharing=cast(Sharing, sharing))
            trained = train(stage, Path(directory), until=int(until), members=members)
            if group.writes:
                save_file(trained.state_dict(), Path(directory) / "trained.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
