"""What a stage reads: padded and masked, the same numbers as serving, one body's part untouched by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy.backbone import ObservationBatch
from policy.config import ConvolutionalSettings, ModelConfig
from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization
from policy.images import resize_frames
from policy.normalization import Normalizer, Statistics
from policy.policy import Policy
from policy.request import ChunkRequest
from policy.trunk import TrunkConfig
from policy.vla import VLA, HistoryBatch
from training.batches import Mixture, landmark_scales
from training.data.pack import Pack
from training.data.windows import gather_windows

CAMERA_SIZE, IMAGE_SIZE, HORIZON, HISTORY_STEPS = 24, 16, 4, 3
EPISODE_LENGTHS = (7, 5)


def spec(name: str, *, state_dim: int, action_dim: int, cameras: tuple[str, ...], relative: bool) -> EmbodimentSpec:
    return EmbodimentSpec(
        name=name,
        cameras=tuple(Camera(name=camera, height=CAMERA_SIZE, width=CAMERA_SIZE) for camera in cameras),
        state=(Group(name="joints", dim=state_dim, kind=GroupKind.JOINT_POSITION, unit="rad"),),
        action=(
            Group(
                name="joints",
                dim=action_dim,
                kind=GroupKind.JOINT_POSITION,
                unit="rad",
                normalization=Normalization.MEAN_STD,
                relative_to="joints" if relative else None,
            ),
        ),
        control_rate_hz=20.0,
    )


ARM = spec("arm", state_dim=4, action_dim=3, cameras=("front", "wrist"), relative=False)
PAIR = spec("pair", state_dim=6, action_dim=6, cameras=("top",), relative=True)
SPECS = (ARM, PAIR)
MAX_STATE_DIM = MAX_ACTION_DIM = 6
_TRUNK = TrunkConfig(width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8)
CONFIG = ModelConfig(
    size="toy",
    num_embodiments=2,
    max_cameras=2,
    max_state_dim=MAX_STATE_DIM,
    max_action_dim=MAX_ACTION_DIM,
    image_size=IMAGE_SIZE,
    interpolation="bilinear",
    action_horizon=HORIZON,
    execution_horizon=2,
    history_steps=HISTORY_STEPS,
    num_inference_steps=2,
    max_inference_steps=4,
    noise_scale=1.0,
    latent_dim=8,
    num_soft_tokens=1,
    encoder=_TRUNK,
    decoder=_TRUNK,
    backbone=ConvolutionalSettings(vocabulary=8, num_keypoints=2, channels=(4, 4, 4, 4), trunk=_TRUNK),
)


def statistics(body: EmbodimentSpec) -> Statistics:
    """Different for every dimension, so that a mix-up shows."""

    def side(dim: int) -> dict[str, list[float]]:
        return {
            "q01": [-2.0 - 0.1 * i for i in range(dim)],
            "q99": [3.0 + 0.2 * i for i in range(dim)],
            "mean": [0.05 * i for i in range(dim)],
            "std": [1.0 + 0.3 * i for i in range(dim)],
        }

    return {"state": side(body.state_dim), "action": side(body.action_dim)}


def pack(body: EmbodimentSpec, task: str, *, seed: int, num_landmarks: int) -> Pack:
    generator = np.random.default_rng(seed)
    total = sum(EPISODE_LENGTHS)
    raw = generator.integers(0, 256, (len(body.cameras), total, CAMERA_SIZE, CAMERA_SIZE, 3), dtype=np.uint8)

    def rows(dim: int) -> Any:
        return generator.normal(size=(total, dim)).astype(np.float32)

    return Pack(
        directory=Path(task),
        source_sha256="",
        task=task,
        instructions=(f"do {task}",),
        spec=body,
        image_size=IMAGE_SIZE,
        state=rows(body.state_dim),
        action=rows(body.action_dim),
        executed_action=rows(body.action_dim),
        environment_state=rows(num_landmarks) * 5 + 2,
        environment_state_names=tuple("abcdef"[:num_landmarks]),
        images={
            name: resize_frames(torch.from_numpy(frames), IMAGE_SIZE).numpy()
            for name, frames in zip(body.camera_names, raw, strict=True)
        },
        episode_start=np.array([0, EPISODE_LENGTHS[0]]),
        episode_length=np.array(EPISODE_LENGTHS),
        episode_seed=np.arange(len(EPISODE_LENGTHS)),
        episode_instruction=np.zeros(len(EPISODE_LENGTHS), np.int64),
    )


PACKS = (
    pack(ARM, "reach", seed=0, num_landmarks=3),
    pack(PAIR, "hand-over", seed=1, num_landmarks=6),
    pack(ARM, "push", seed=2, num_landmarks=2),
)
# One frame with a whole history and a whole chunk, one at each end of an episode.
ARM_FRAMES, PAIR_FRAMES, PUSH_FRAMES = np.array([3, 6, 7]), np.array([11, 2]), np.array([0])
PICKS = [(0, ARM_FRAMES), (1, PAIR_FRAMES), (2, PUSH_FRAMES)]
NUM_PICKED = 6


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture(
        packs=PACKS,
        normalizers={body.name: Normalizer(body, statistics(body)) for body in SPECS},
        embodiments={body.name: index for index, body in enumerate(SPECS)},
        config=CONFIG,
        landmark_scales=landmark_scales(PACKS),
    )


def shown(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def test_a_body_is_padded_with_zeros_and_only_its_own_dimensions_and_steps_are_real(mixture: Mixture) -> None:
    motion = mixture.motion(PICKS)
    assert motion.states.shape == (NUM_PICKED, HORIZON, MAX_STATE_DIM)
    assert motion.actions.shape == (NUM_PICKED, HORIZON, MAX_ACTION_DIM)
    assert motion.embodiment.tolist() == [0, 0, 0, 1, 1, 0]
    assert motion.action_mask.sum(1).tolist() == [3, 3, 3, 6, 6, 3]
    arm = motion.embodiment == 0
    assert not motion.states[arm][..., ARM.state_dim :].any()
    assert not motion.actions[arm][..., ARM.action_dim :].any()
    # Frame 6 is the last of its episode, frame 11 of the other one.
    assert motion.step_mask.sum(1).tolist() == [4, 1, 4, 1, 4, 4]
    assert motion.step_mask[:, 0].all()


def test_a_mixed_batch_is_its_single_body_parts_one_after_another(mixture: Mixture) -> None:
    mask = torch.tensor([True, False, True, True, False, True])
    mixed = mixture.vla(PICKS, mask)
    parts, start = [], 0
    for index, frames in PICKS:
        parts.append(mixture.vla([(index, frames)], mask[start : start + len(frames)]))
        start += len(frames)
    assert_is_concatenation(mixed, parts)
    assert_is_concatenation(mixture.motion(PICKS), [mixture.motion([pick]) for pick in PICKS])


def assert_is_concatenation(whole: Any, parts: Sequence[Any]) -> None:
    for field in fields(whole):
        value, pieces = getattr(whole, field.name), [getattr(part, field.name) for part in parts]
        if is_dataclass(value):
            assert_is_concatenation(value, pieces)
        elif isinstance(value, Tensor):
            assert torch.equal(value, torch.cat(pieces)), field.name
        else:
            assert value == sum(pieces, ()), field.name


def test_model_units_come_back_as_the_recorded_actions(mixture: Mixture) -> None:
    for index, frames in PICKS:
        body = PACKS[index].spec
        motion = mixture.motion([(index, frames)])
        actions = mixture.normalizers[body.name].unnormalize_action(
            motion.actions[..., : body.action_dim], torch.from_numpy(PACKS[index].state[frames])
        )
        expected = gather_windows(PACKS[index], frames, horizon=HORIZON, history_steps=0).actions
        torch.testing.assert_close(actions, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


class Spy(nn.Module):
    """In the place of a VLA: keeps what the policy hands to the model."""

    config = CONFIG
    backbone = SimpleNamespace(instructions=SimpleNamespace(tokens=str.split))
    observation: ObservationBatch
    history: HistoryBatch | None

    def sample(self, observation: ObservationBatch, history: HistoryBatch | None, noise: Tensor, *_: object) -> Tensor:
        self.observation, self.history = observation, history
        return torch.zeros_like(noise)


def test_training_and_serving_hand_the_model_the_same_numbers(mixture: Mixture) -> None:
    spy = Spy()
    policy = Policy(
        vla=cast(VLA, spy), specs=SPECS, statistics=[statistics(body) for body in SPECS], manifest={}, revision=""
    )
    policy.predict_chunk([served_request(index, int(frame)) for index, frames in PICKS for frame in frames])
    trained = mixture.vla(PICKS, shown(NUM_PICKED))
    for name in ("images", "camera_mask", "state", "state_mask", "embodiment"):
        assert torch.equal(getattr(spy.observation, name), getattr(trained.observation, name)), name
    assert spy.observation.instructions == trained.observation.instructions
    assert spy.history is not None
    assert trained.history is not None
    mask = trained.history.step_mask
    assert mask.sum(1).tolist() == [3, 3, 0, 3, 2, 0]
    assert torch.equal(spy.history.step_mask, mask)
    assert torch.equal(spy.history.states[mask], trained.history.states[mask])
    assert torch.equal(spy.history.actions[mask], trained.history.actions[mask])


def served_request(index: int, frame: int) -> ChunkRequest:
    recorded = PACKS[index]
    first = int(recorded.episode_start[recorded.episode_of(np.array([frame]))[0]])
    past = slice(max(first, frame - HISTORY_STEPS), frame)
    return ChunkRequest(
        embodiment=recorded.spec.name,
        images={name: torch.from_numpy(frames[frame]) for name, frames in recorded.images.items()},
        state=torch.from_numpy(recorded.state[frame]),
        instruction=recorded.instructions_of(np.array([frame]))[0],
        history_states=torch.from_numpy(recorded.state[past]),
        history_actions=torch.from_numpy(recorded.executed_action[past]),
    )


def test_cameras_a_body_lacks_are_masked_and_black(mixture: Mixture) -> None:
    observation = mixture.vla(PICKS, shown(NUM_PICKED)).observation
    assert observation.camera_mask.sum(1).tolist() == [2, 2, 2, 1, 1, 2]
    assert not observation.images[~observation.camera_mask].any()
    assert torch.equal(observation.images[3, 0], torch.from_numpy(PACKS[1].images["top"][11]))


def test_hidden_states_are_told_by_their_mask(mixture: Mixture) -> None:
    mask = torch.tensor([True, False, True, False, False, True])
    assert torch.equal(mixture.vla(PICKS, mask).observation.state_mask, mask)


def test_pictures_move_by_whole_pixels_and_repeat_their_edge(mixture: Mixture) -> None:
    still = mixture.vla(PICKS, shown(NUM_PICKED)).observation.images
    shifts = torch.randint(-2, 3, (*still.shape[:2], 2), generator=torch.Generator().manual_seed(0))
    moved = mixture.vla(PICKS, shown(NUM_PICKED), shifts=shifts).observation.images
    assert not torch.equal(moved, still)
    size = still.shape[2]
    for at in np.ndindex(*still.shape[:2]):
        down, right = shifts[at].tolist()
        around = np.pad(still[at].numpy(), ((2, 2), (2, 2), (0, 0)), mode="edge")
        expected = around[2 - down : 2 - down + size, 2 - right : 2 - right + size]
        np.testing.assert_array_equal(moved[at].numpy(), expected)


def test_history_is_left_out_when_a_recipe_has_none(mixture: Mixture) -> None:
    assert mixture.vla(PICKS, shown(NUM_PICKED), history=False).history is None


def test_landmarks_are_standardised_per_task_and_masked_to_its_own(mixture: Mixture) -> None:
    landmarks = mixture.vla(PICKS, shown(NUM_PICKED)).landmarks
    assert landmarks is not None
    assert landmarks.task.tolist() == [0, 0, 0, 1, 1, 2]
    assert landmarks.mask.sum(1).tolist() == [3, 3, 3, 6, 6, 2]
    assert not landmarks.values[~landmarks.mask].any()
    everything = mixture.vla([(0, np.arange(12))], shown(12)).landmarks
    assert everything is not None
    torch.testing.assert_close(everything.values[:, :3].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(everything.values[:, :3].std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_a_landmark_that_never_moves_is_not_stretched() -> None:
    still = replace(PACKS[0], environment_state=np.full((12, 3), 0.7, np.float32))
    ((mean, std),) = landmark_scales([still])
    np.testing.assert_allclose(mean, 0.7, rtol=1e-6)
    np.testing.assert_array_equal(std, 1.0)


def test_without_landmarks_none_are_read(mixture: Mixture) -> None:
    bare = replace(mixture, landmark_scales=())
    assert bare.vla(PICKS, shown(NUM_PICKED)).landmarks is None


def test_landmarks_that_were_not_recorded_are_missed_by_name() -> None:
    with pytest.raises(ValueError, match="pack reach has no environment_state; set landmark_weight to 0"):
        landmark_scales([replace(PACKS[0], environment_state=None)])


def test_a_pack_of_an_unknown_body_is_refused(mixture: Mixture) -> None:
    stranger = replace(PACKS[0], spec=replace(ARM, name="stranger"))
    with pytest.raises(KeyError, match="stranger"):
        replace(mixture, packs=(stranger,)).motion([(0, np.array([0]))])
