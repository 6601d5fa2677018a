"""Toy bodies and toy models of every backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from policy.backbone import ObservationBatch
from policy.config import ConvolutionalSettings, ModelConfig
from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from policy.sizes import tiny, tiny_vlm
from policy.trunk import TrunkConfig
from policy.vla import VLA, build_vla
from policy.vlm_toy import toy_hugging_face
from policy.vocabulary import train_tokenizer

INSTRUCTIONS = ("open the drawer", "pick up the puck and place it at the goal", "press the button")
TOY_TRUNK = TrunkConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48, rope_theta=1e4)

MakeBody = Callable[..., EmbodimentSpec]
MakeVla = Callable[[str], VLA]
Observe = Callable[..., ObservationBatch]


@pytest.fixture(scope="session")
def make_body() -> MakeBody:
    def build(name: str, *, cameras: int, state_dim: int, action_dim: int) -> EmbodimentSpec:
        def joints(dim: int) -> tuple[Group, ...]:
            return (Group(name="joints", dim=dim, kind=GroupKind.JOINT_POSITION, unit="rad"),)

        return EmbodimentSpec(
            name=name,
            cameras=tuple(Camera(name=f"camera-{index}", height=48, width=64) for index in range(cameras)),
            state=joints(state_dim),
            action=joints(action_dim),
            control_rate_hz=20.0,
        )

    return build


@pytest.fixture(scope="session")
def specs(make_body: MakeBody) -> tuple[EmbodimentSpec, ...]:
    """Two bodies of different widths and numbers of cameras."""
    return (
        make_body("one-eye", cameras=1, state_dim=3, action_dim=2),
        make_body("two-eyes", cameras=2, state_dim=5, action_dim=4),
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(INSTRUCTIONS)


@pytest.fixture(scope="session")
def toy_config(specs: tuple[EmbodimentSpec, ...], tokenizer: Tokenizer) -> Callable[[str], ModelConfig]:
    """The config of a toy model: `convolutional`, or a family of VLMs."""

    def build(kind: str) -> ModelConfig:
        vocabulary = tokenizer.get_vocab_size()
        if kind == "convolutional":
            backbone = ConvolutionalSettings(
                vocabulary=vocabulary, num_keypoints=4, channels=(8, 8, 16, 16), trunk=TOY_TRUNK
            )
            config = replace(tiny(specs, vocabulary), backbone=backbone, image_size=48, latent_dim=24)
        else:
            config = replace(tiny_vlm(specs, vocabulary, toy_hugging_face(kind, tokenizer)), latent_dim=24)
        return replace(
            config, encoder=TOY_TRUNK, decoder=TOY_TRUNK, history_steps=4, action_horizon=6, execution_horizon=3
        )

    return build


@pytest.fixture(scope="session")
def make_vla(toy_config: Callable[[str], ModelConfig], tokenizer: Tokenizer) -> MakeVla:
    def build(kind: str) -> VLA:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vla = build_vla(toy_config(kind), tokenizer).eval()
            wake(vla)
        return vla

    return build


@pytest.fixture
def observe(specs: tuple[EmbodimentSpec, ...]) -> Observe:
    """Observations of the bodies at the given indices, each row drawn from its own seed."""

    def build(config: ModelConfig, bodies: tuple[int, ...] = (0, 1, 1), first_seed: int = 0) -> ObservationBatch:
        size = config.image_size
        images, state, mask = [], [], []
        for row, body in enumerate(bodies):
            draw = torch.Generator().manual_seed(100 * body + first_seed + row)
            shape = (config.max_cameras, size, size, 3)
            images.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw))
            state.append(torch.randn(config.max_state_dim, generator=draw))
            state[-1][specs[body].state_dim :] = 0
            mask.append(torch.arange(config.max_cameras) < len(specs[body].cameras))
        return ObservationBatch(
            images=torch.stack(images),
            camera_mask=torch.stack(mask),
            state=torch.stack(state),
            state_mask=torch.ones(len(bodies), dtype=torch.bool),
            instructions=tuple(INSTRUCTIONS[row % len(INSTRUCTIONS)] for row in range(len(bodies))),
            embodiment=torch.tensor(bodies),
        )

    return build


@torch.no_grad()
def wake(module: nn.Module) -> None:
    """Gives weights to what starts at zero: the decoder's output and condition, without which a chunk is its noise."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=0.2)
