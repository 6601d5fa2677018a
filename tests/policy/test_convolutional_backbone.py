from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from policy.backbone import ObservationBatch
from policy.convolutional import ConvolutionalBackbone
from policy.instructions import MAX_TOKENS, InstructionReader, InstructionTooLongError
from policy.vla import VLA


@torch.no_grad()
def test_nothing_reads_the_first_query(
    make_vla: Callable[[str], VLA], observe: Callable[..., ObservationBatch]
) -> None:
    backbone = make_vla("convolutional").backbone
    assert isinstance(backbone, ConvolutionalBackbone)
    observation, latent = observe(make_vla("convolutional").config), torch.ones(3, 24)
    expected = backbone(observation, latent)

    def disturb(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[:, -3] += 5.0
        return (x, *args[1:])

    with backbone.trunk.register_forward_pre_hook(disturb):
        disturbed = backbone(observation, latent)
    torch.testing.assert_close(disturbed.with_history, expected.with_history, atol=1e-6, rtol=0)
    assert (disturbed.without_history - expected.without_history).abs().max() > 1e-2


@torch.no_grad()
def test_the_eyes_alone_say_nothing_of_a_masked_camera(
    make_vla: Callable[[str], VLA], observe: Callable[..., ObservationBatch]
) -> None:
    vla = make_vla("convolutional")
    visual = vla.backbone(observe(vla.config)).visual
    assert visual is not None
    first, second = visual.chunk(2, dim=1)
    assert first.any(1).all()
    assert not second[0].any() and second[1:].any(1).all()


@torch.no_grad()
def test_every_token_that_is_read_counts_and_one_too_many_is_refused(
    make_vla: Callable[[str], VLA], observe: Callable[..., ObservationBatch]
) -> None:
    backbone = make_vla("convolutional").backbone
    observation = observe(make_vla("convolutional").config, bodies=(0,))

    def answer(instruction: str) -> Tensor:
        return backbone(replace(observation, instructions=(instruction,))).without_history

    # A digit is a token of its own.
    longest = "1" * MAX_TOKENS
    assert (answer(longest) - answer(longest[:-1] + "2")).abs().max() > 1e-6
    with pytest.raises(InstructionTooLongError, match="an instruction of 129 tokens came, expected at most 128"):
        answer(longest + "1")


@torch.no_grad()
def test_a_short_instruction_is_read_the_same_beside_a_long_one(
    make_vla: Callable[[str], VLA], observe: Callable[..., ObservationBatch]
) -> None:
    backbone = make_vla("convolutional").backbone
    observation = observe(make_vla("convolutional").config, bodies=(0, 0))
    short, both = backbone(observation), backbone(replace(observation, instructions=("open the drawer", "1" * 100)))
    torch.testing.assert_close(both.without_history[0], short.without_history[0], atol=1e-6, rtol=0)
    assert (both.without_history[1] - short.without_history[1]).abs().max() > 1e-4


def test_text_that_spells_a_special_token_is_text(tokenizer: Tokenizer) -> None:
    (pad,) = tokenizer.encode("<pad>").ids
    assert pad not in InstructionReader(tokenizer).tokens("press <pad>")
