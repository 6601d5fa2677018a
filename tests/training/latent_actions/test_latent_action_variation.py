"""Variation of pairs: the same for both frames and their masks, and nothing moves otherwise than it did."""

from __future__ import annotations

import torch

from training.latent_actions.variation import Variation


def test_frames_and_masks_are_mirrored_together_and_colours_change_alone() -> None:
    variation = Variation(torch.tensor([False, True]), torch.tensor([[0, 1, 2], [2, 0, 1]]), torch.ones(2, 3))
    frames = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    varied = variation.of_frames(frames)
    assert torch.equal(varied[0], frames[0])
    assert torch.equal(varied[1], frames[1].flip(1)[..., [2, 0, 1]])
    assert torch.equal(variation.of_masks(masks), torch.stack([masks[0], masks[1].flip(1)]))


def test_a_gain_stays_within_pixels() -> None:
    variation = Variation(torch.tensor([False]), torch.tensor([[0, 1, 2]]), torch.tensor([[1.3, 1.0, 0.7]]))
    frames = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 1, 3, 3)
    assert variation.of_frames(frames)[0, 0].tolist() == [[0, 0, 0], [130, 100, 70], [255, 250, 175]]


def test_variations_are_a_function_of_their_generator() -> None:
    one, other = (Variation.draw(64, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one.mirrored, other.mirrored)
    assert torch.equal(one.channels, other.channels)
    assert torch.equal(one.gain, other.gain)
    assert 0 < one.mirrored.sum() < 64
    assert len(one.channels.unique(dim=0)) == 6
    assert one.channels.sort(1).values.tolist() == [[0, 1, 2]] * 64
