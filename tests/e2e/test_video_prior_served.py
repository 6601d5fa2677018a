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
import torch

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from policy.policy import Policy
from policy.request import ChunkRequest
from premotor.client import PolicyClient
from premotor.v1 import policy_pb2_grpc
from premotor.wire import decode_tensor
from service.bench.requests import chunk_requests, decoded_request
from service.bench.served import POLICY, served
from service.ctl.admin_client import AdminAddress, AdminClient
from service.local import to_chunk_request
from service.model_settings import BackendKind, ModelSettings
from service.probe import read_probe
from service.revision import read_revision
from training.__main__ import main
from training.data.lerobot.writer import LeRobotWriter
from training.ego_video.pack import Clip, ClipPackWriter
from training.pipeline import train
from training.recipe import Recipe, RunDirectory

SPEC = EmbodimentSpec(
    name="slider",
    cameras=(Camera(name="front", height=32, width=48),),
    state=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    action=(Group(name="position", dim=2, kind=GroupKind.OTHER, unit="m"),),
    control_rate_hz=10.0,
)
WAIT_S = 60.0
HAS_TRITON = (sys.platform, platform.machine()) == ("linux", "x86_64")
TASK = "drawer-open"


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


def recipe_of(root: Path, task: str) -> dict[str, Any]:
    """The JSON of the whole chain in a few steps, on the clips and the recordings below `root`."""
    return {
        "name": task,
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
            "data": {"tasks": [task], "episodes_per_task": 2},
            "stage1": {"schedule": {"num_steps": 0}},
            "stage2": {
                "schedule": schedule(4), "batch_size": 4, "decay_steps": 0, "landmark_weight": 0.0, "history": False,
            },
        },
    }  # fmt: skip


def trained(root: Path, task: str) -> Path:
    """By the command line; what is served needs neither clips, eyes nor codes beside it."""
    path = root / f"{task}.json"
    path.write_text(json.dumps(recipe_of(root, task)))
    assert main(["video-prior", "--recipe", str(path), "--run", str(root / "run"), "--threads", "1"]) == 0
    (root / "store").mkdir()
    return (root / "run" / "checkpoint").rename(root / "store" / "video-prior")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("video-prior")
    write_clips(root / "clips")
    write_demonstrations(root / "run" / "data" / "slide")
    return trained(root, "slide")


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies of one simulated robot, of a few steps: `no-prior` as paper A's control, `video-prior`."""
    pytest.importorskip("metaworld")
    from training.record import record

    root = tmp_path_factory.mktemp("robots")
    write_clips(root / "clips")
    record(task=TASK, directory=root / "run" / "data" / TASK, num_episodes=2, first_seed=0)
    base = Recipe.from_json({"name": "no-prior", **recipe_of(root, TASK)["base"]})
    plain = RunDirectory(root=root / "plain", shared=root / "run")
    train(base, plain)
    trained(root, TASK)
    return plain.checkpoint.rename(root / "store" / "no-prior").parent


@pytest.mark.parametrize("backend", ["local", "triton"])
def test_a_policy_from_video_is_served_with_the_chunks_it_gives_in_process(
    checkpoint: Path, backend: BackendKind
) -> None:
    if backend == "triton" and not HAS_TRITON:
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


def test_a_policy_from_video_is_promoted_over_another_and_a_simulated_robot_plays_its_chunks(robots: Path) -> None:
    from training.simulation.registry import make_simulation

    arguments = ("--store", str(robots))
    simulation, path = make_simulation(TASK), f"/v1/fleet/policies/{POLICY}"
    backend: BackendKind = "triton" if HAS_TRITON else "local"
    in_process = {name: Policy.from_checkpoint(robots / name) for name in ("no-prior", "video-prior")}
    with (
        served(robots / "no-prior", ModelSettings(), backend=backend, arguments=arguments) as service,
        PolicyClient(service.grpc_address) as client,
        AdminClient(AdminAddress(url=service.admin_url)) as admin,
    ):
        horizon = client.get_policy(POLICY).execution_horizon

        def play(seed: int) -> tuple[str, np.ndarray]:
            """One chunk's first actions, which are those of its checkpoint on what the robot saw and no other's: the
            revision that gave them, and how the robot's state changed."""
            before, frame = simulation.state(), simulation.observe()
            chunk = client.predict_chunk(
                policy=POLICY,
                robot_id="sawyer-1",
                episode_id="first",
                embodiment=simulation.spec.name,
                images=frame.images,
                state=frame.state,
                instruction=simulation.instruction,
                seed=seed,
                image_encoding="raw",
                timeout_s=WAIT_S,
            )
            asked = ChunkRequest(
                embodiment=simulation.spec.name,
                images={name: torch.from_numpy(pixels.copy()) for name, pixels in frame.images.items()},
                state=torch.from_numpy(frame.state.copy()),
                instruction=simulation.instruction,
                seed=seed,
            )
            expected = {policy.revision: policy.predict_chunk([asked])[0].numpy() for policy in in_process.values()}
            np.testing.assert_allclose(chunk.actions, expected.pop(chunk.revision), rtol=0, atol=1e-4)
            assert np.abs(chunk.actions - expected.popitem()[1]).max() > 1e-2
            for action in chunk.actions[:horizon]:
                simulation.step(action)
            return chunk.revision, simulation.state() - before

        simulation.reset(100_000)
        try:
            old, _ = play(0)
            new = admin.carry_out(f"{path}/revisions", {"location": "video-prior"})["revision"]
            admin.carry_out(f"{path}/revisions/{new}:promote", {"move_episodes": True})
            variants = {each: admin.get(f"{path}/revisions/{each}")["variant"] for each in (old, new)}
            assert variants == {old: "no-prior", new: "video-prior"}
            played = [play(seed) for seed in range(1, 4)]
        finally:
            simulation.close()
    assert (old, new) == tuple(policy.revision for policy in in_process.values())
    assert {revision for revision, _ in played} == {new}
    assert np.abs(sum(moved for _, moved in played)).max() > 1e-3, "the robot stands still"
