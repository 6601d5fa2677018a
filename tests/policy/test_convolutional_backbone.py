from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from policy.backbone import ObservationBatch
from policy.convolutional import ConvolutionalBackbone
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
