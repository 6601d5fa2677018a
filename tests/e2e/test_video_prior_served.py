"""From clips without actions to chunks: `video-prior` by the command line, then a gateway on either backend."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from policy.policy import Policy
from premotor.v1 import policy_pb2_grpc
from premotor.wire import decode_tensor
from service.bench.requests import chunk_requests, decoded_request
from service.bench.served import POLICY, served
from service.local import to_chunk_request
from service.model_settings import BackendKind, ModelSettings
from service.probe import read_probe
from service.revision import read_revision
from training.__main__ import main
from training.data.lerobot.writer import LeRobotWriter
from training.ego_video.pack import Clip, ClipPackWriter

SPEC = EmbodimentSpec(
    name="slider",
    cameras=(Camera(name="front", height=32, width=48),),
    state=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    action=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    control_rate_hz=10.0,
)
WAIT_S = 60.0


def schedule(num_steps: int) -> dict[str, Any]:
    return {"num_steps": num_steps, "learning_rate": 0.03, "warmup_steps": 1, "ema_decay": 0.5}


def write_clips(directory: Path) -> None:
    generator = np.random.default_rng(0)
    with ClipPackWriter(directory, 16) as writer:
        for name in ("one", "other"):
            frames = generator.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
            writer.add(Clip(name=name, source="noise", rate_hz=5.0, instruction="slide it over"), frames)


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("video-prior")
    write_clips(root / "clips")
    write_demonstrations(root / "run" / "data" / "slide")
    recipe = {
        "name": "slide",
        "clips": [str(root / "clips")],
        "eyes": {
            "visual": {"image_size": 16, "patch": 4, "width": 32, "num_layers": 1},
            "batch_size": 4,
            "schedule": schedule(2),
        },
        "latent_actions": {
            "gap_s": 0.4, "masks": "none", "num_codes": 4, "num_tokens": 2, "width": 32,
            "encoder_layers": 1, "decoder_layers": 1, "batch_size": 4, "schedule": schedule(2),
        },
        "pretraining": {"schedule": schedule(2), "batch_size": 4},
        "base": {
            "size": "tiny",
            "autocast": False,
            "data": {"tasks": ["slide"], "episodes_per_task": 2},
            "stage1": {"schedule": {"num_steps": 0}},
            "stage2": {"schedule": schedule(4), "batch_size": 4, "decay_steps": 0, "landmark_weight": 0.0},
        },
    }  # fmt: skip
    (root / "slide.json").write_text(json.dumps(recipe))
    assert (
        main(["video-prior", "--recipe", str(root / "slide.json"), "--run", str(root / "run"), "--threads", "1"]) == 0
    )
    # What is served needs neither clips, eyes nor codes beside it.
    return (root / "run" / "checkpoint").rename(root / "served")


@pytest.mark.parametrize("backend", ["local", "triton"])
def test_a_policy_from_video_is_served_with_the_chunks_it_gives_in_process(
    checkpoint: Path, backend: BackendKind
) -> None:
    if backend == "triton" and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton's wheel is for Linux x86-64")
    revision, policy = read_revision(checkpoint, policy=POLICY), Policy.from_checkpoint(checkpoint)
    assert policy.manifest["variant"] == "video-prior"
    (case,) = read_probe(revision)
    chunks = []
    with (
        served(checkpoint, ModelSettings(max_batch_size=4), backend=backend) as service,
        grpc.insecure_channel(service.grpc_address) as channel,
    ):
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for message in chunk_requests(revision, case, policy=POLICY)[:3]:
            asked = to_chunk_request(tuple(policy.embodiments.values()), decoded_request(message, case, revision))
            response = stub.PredictChunk(message, timeout=WAIT_S)
            assert response.revision == revision.revision
            chunks.append(decode_tensor(response.actions, field="actions", dtype=np.float32, shape=(None, None)))
            np.testing.assert_allclose(chunks[-1], policy.predict_chunk([asked])[0].numpy(), rtol=0, atol=1e-4)
    # The same noise each time: what the eyes saw is in the chunk.
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3
