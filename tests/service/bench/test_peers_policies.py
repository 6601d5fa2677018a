"""What the peers' servers call: the same question reaches the model whatever its wire made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from service.bench.peers import lerobot_server, openpi_server
from service.bench.peers.served_model import ServedModel, ServedModelSettings, announce, model_parser, model_settings
from service.model_settings import openmp_environment

FRAME = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
STATE = np.array([0.5, -0.25], np.float32)


@dataclass
class NotedModel:
    """Keeps what it was asked."""

    asked: list[tuple[Any, ...]]
    spec = SimpleNamespace(camera_names=("front",))

    def chunk(self, images: dict[str, np.ndarray], state: np.ndarray, instruction: str, seed: int) -> np.ndarray:
        self.asked.append((images, state, instruction, seed))
        return np.ones((4, 2), np.float32)


def assert_asked(model: NotedModel, *, seed: int) -> None:
    ((images, state, instruction, asked_seed),) = model.asked
    np.testing.assert_array_equal(images["front"], FRAME)
    np.testing.assert_array_equal(state, STATE)
    assert (instruction, asked_seed) == ("push", seed)


def test_openpis_server_gets_a_fresh_dict_each_time() -> None:
    model: Any = NotedModel([])
    policy = openpi_server.CheckpointPolicy(model)
    observation = {"observation/front": FRAME, "observation/state": STATE, "prompt": "push", "seed": 3}
    first = policy.infer(observation)
    assert_asked(model, seed=3)
    assert first["actions"].shape == (4, 2)
    assert policy.infer(observation) is not first


def test_frames_come_back_from_lerobots_preparation_bit_for_bit() -> None:
    model: Any = NotedModel([])
    policy = lerobot_server.CheckpointPolicy(model, {})
    # As `prepare_image` of LeRobot 0.4.4 leaves them.
    prepared = torch.from_numpy(FRAME).permute(2, 0, 1).type(torch.float32)[None] / 255
    observation = {
        "observation.images.front": prepared,
        "observation.state": torch.from_numpy(STATE)[None],
        "task": "push",
    }
    chunk = policy.predict_action_chunk(observation)
    assert_asked(model, seed=0)
    assert chunk.shape == (1, 4, 2)


def test_all_peers_take_the_same_flags() -> None:
    arguments = model_parser("").parse_args(["--checkpoint", "c", "--threads", "2", "--dtype", "bf16"])
    told = model_settings(arguments)
    assert (str(told.checkpoint), told.threads, told.dtype, told.embodiment) == ("c", 2, "bf16", "")


def test_an_embodiment_that_the_policy_has_not_is_named(toy_checkpoint, monkeypatch) -> None:
    for name, value in openmp_environment(1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="'crab' came, the policy drives"):
        ServedModel(ServedModelSettings(checkpoint=toy_checkpoint, embodiment="crab"))


def test_the_ready_line_is_one_line_of_json() -> None:
    output = StringIO()
    announce(output, addresses=["a:1"])
    assert json.loads(output.getvalue()) == {"event": "ready", "addresses": ["a:1"]}
    assert output.getvalue().count("\n") == 1
