"""What every backbone promises, whatever its eyes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from policy.backbone import ObservationBatch, select_query
from policy.vla import VLA, HistoryBatch

KINDS = ("convolutional", "smolvlm", "qwen3_vl", "idefics3", "qwen2_5_vl", "paligemma", "internvl")
Observe = Callable[..., ObservationBatch]


@pytest.fixture(scope="module", params=KINDS)
def vla(request: pytest.FixtureRequest, make_vla: Callable[[str], VLA]) -> VLA:
    return make_vla(request.param)


@pytest.fixture
def observation(vla: VLA, observe: Observe) -> ObservationBatch:
    return observe(vla.config)


def _latent(rows: int = 3, seed: int = 7) -> Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed))


def _row(observation: ObservationBatch, row: int) -> ObservationBatch:
    one = slice(row, row + 1)
    return ObservationBatch(
        images=observation.images[one],
        camera_mask=observation.camera_mask[one],
        state=observation.state[one],
        state_mask=observation.state_mask[one],
        instructions=observation.instructions[one],
        embodiment=observation.embodiment[one],
    )


def _history(vla: VLA, lengths: tuple[int, ...]) -> HistoryBatch:
    config, draw = vla.config, torch.Generator().manual_seed(5)
    steps = config.history_steps
    return HistoryBatch(
        states=torch.randn(len(lengths), steps, config.max_state_dim, generator=draw),
        actions=torch.randn(len(lengths), steps, config.max_action_dim, generator=draw),
        step_mask=torch.arange(steps) >= steps - torch.tensor(lengths)[:, None],
    )


def _sample(vla: VLA, observation: ObservationBatch, history: HistoryBatch | None) -> Tensor:
    config, rows = vla.config, len(observation.instructions)
    noise = torch.randn(rows, config.action_horizon, config.max_action_dim, generator=torch.Generator().manual_seed(3))
    return vla.sample(
        observation, history, noise, torch.ones(rows, config.max_action_dim, dtype=torch.bool), [3] * rows
    )


@torch.no_grad()
def test_the_answer_without_history_does_not_know_the_history(vla: VLA, observation: ObservationBatch) -> None:
    plain = vla.backbone(observation)
    first, second = vla.backbone(observation, _latent()), vla.backbone(observation, _latent(seed=8))
    assert plain.with_history is None
    assert plain.without_history.shape == (3, vla.backbone.width)
    torch.testing.assert_close(first.without_history, plain.without_history, atol=1e-5, rtol=0)
    torch.testing.assert_close(second.without_history, first.without_history, atol=1e-6, rtol=0)
    assert first.with_history is not None and second.with_history is not None
    assert (first.with_history - second.with_history).abs().max() > 1e-4


@torch.no_grad()
def test_a_mixed_batch_equals_its_singles(vla: VLA, observation: ObservationBatch) -> None:
    latent = _latent()
    together = vla.backbone(observation, latent)
    for row in range(3):
        alone = vla.backbone(_row(observation, row), latent[row : row + 1])
        torch.testing.assert_close(together.without_history[row], alone.without_history[0], atol=1e-5, rtol=0)
        assert together.with_history is not None and alone.with_history is not None
        torch.testing.assert_close(together.with_history[row], alone.with_history[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_a_masked_camera_shows_does_not_matter(vla: VLA, observation: ObservationBatch) -> None:
    images = observation.images.clone()
    images[0, 1] = 255 - images[0, 1]  # the one-eyed body has no second camera
    answer, expected = (vla.backbone(value, _latent()) for value in (replace(observation, images=images), observation))
    torch.testing.assert_close(answer.without_history, expected.without_history, atol=1e-6, rtol=0)
    torch.testing.assert_close(answer.with_history, expected.with_history, atol=1e-6, rtol=0)


@torch.no_grad()
def test_what_a_real_camera_shows_matters_to_its_own_row(vla: VLA, observation: ObservationBatch) -> None:
    images = observation.images.clone()
    images[1, 1] = 255 - images[1, 1]
    changed = vla.backbone(replace(observation, images=images)).without_history
    moved = (changed - vla.backbone(observation).without_history).abs().amax(1)
    assert moved[1] > 1e-5
    assert moved[0] < 1e-6 and moved[2] < 1e-6


@torch.no_grad()
def test_instruction_state_and_body_are_read(vla: VLA, observation: ObservationBatch) -> None:
    expected = vla.backbone(observation).without_history
    for changed in (
        replace(observation, instructions=observation.instructions[::-1]),
        replace(observation, state=-observation.state),
        replace(observation, embodiment=1 - observation.embodiment),
    ):
        assert (vla.backbone(changed).without_history[0] - expected[0]).abs().max() > 1e-5


@torch.no_grad()
def test_a_hidden_state_is_not_read(vla: VLA, observation: ObservationBatch) -> None:
    hidden = replace(observation, state_mask=torch.tensor([True, False, True]))
    expected = vla.backbone(hidden).without_history
    answer = vla.backbone(replace(hidden, state=observation.state + 2)).without_history
    torch.testing.assert_close(answer[1], expected[1], atol=1e-6, rtol=0)
    assert (answer[0] - expected[0]).abs().max() > 1e-5
    assert (vla.backbone(observation).without_history[1] - expected[1]).abs().max() > 1e-5


@torch.no_grad()
def test_what_a_backbone_does_with_padded_state_does_not_matter(vla: VLA, observation: ObservationBatch) -> None:
    expected = vla.backbone(observation).without_history
    weight = vla.backbone.state_in.weight
    kept = weight.clone()
    try:
        weight[0, 3:] = 9.0  # the first body has 3 state dimensions of 5
        torch.testing.assert_close(vla.backbone(observation).without_history, expected, atol=1e-6, rtol=0)
    finally:
        weight.copy_(kept)


@torch.no_grad()
def test_an_empty_history_equals_no_history(vla: VLA, observation: ObservationBatch) -> None:
    expected = _sample(vla, observation, None)
    torch.testing.assert_close(_sample(vla, observation, _history(vla, (0, 0, 0))), expected, atol=1e-5, rtol=0)
    mixed = _sample(vla, observation, _history(vla, (0, 2, 4)))
    torch.testing.assert_close(mixed[0], expected[0], atol=1e-5, rtol=0)
    assert ((mixed[1:] - expected[1:]).abs().amax((1, 2)) > 1e-5).all()


@torch.no_grad()
def test_select_query_takes_history_where_there_is_one(vla: VLA, observation: ObservationBatch) -> None:
    output = vla.backbone(observation, _latent())
    assert output.with_history is not None
    chosen = select_query(output, torch.tensor([True, False, True]))
    assert torch.equal(chosen[[0, 2]], output.with_history[[0, 2]])
    assert torch.equal(chosen[1], output.without_history[1])
    plain = vla.backbone(observation)
    assert select_query(plain, torch.tensor([True, True, True])) is plain.without_history


@pytest.mark.parametrize("answer", ["without_history", "with_history"])
def test_gradients_reach_everything_the_answer_reads(vla: VLA, observation: ObservationBatch, answer: str) -> None:
    latent = _latent().requires_grad_()
    getattr(vla.backbone(observation, latent), answer).square().sum().backward()
    untouched = {name for name, value in vla.backbone.named_parameters() if value.grad is None or not value.grad.any()}
    vla.zero_grad()
    expected = {"no_state"}  # every state was shown
    if answer == "without_history":
        expected |= {"history_in.weight", "history_in.bias"}
        assert latent.grad is None or not latent.grad.any()
    else:
        assert latent.grad is not None and latent.grad.any()
    assert untouched == expected


def test_the_saved_tokenizer_reads_as_before(vla: VLA, tmp_path: Path, tokenizer: Tokenizer) -> None:
    vla.backbone.save_tokenizer(str(tmp_path))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("Open the drawer!").ids == tokenizer.encode("Open the drawer!").ids
    assert again.get_vocab() == tokenizer.get_vocab()
