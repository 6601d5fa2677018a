"""Stage 2 with a delay: what it draws, what it counts, what it leaves alone, and what a decoder learns of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policy.flow import masked_mean
from policy.prior import ActionDecoder, PriorConfig
from policy.real_time import Continuation, Guidance, Prefix, soft_mask
from policy.trunk import TrunkConfig
from training.objective import MotionBatch, flow_loss
from training.recipe import Recipe

_TRUNK = TrunkConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=64, rope_theta=1e4)
HORIZON, LATENT_DIM = 8, 8


def make_decoder() -> ActionDecoder:
    config = PriorConfig(
        num_embodiments=1,
        max_state_dim=1,
        max_action_dim=2,
        latent_dim=LATENT_DIM,
        num_soft_tokens=1,
        encoder=_TRUNK,
        decoder=_TRUNK,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ActionDecoder(config)


def waves(batch: int, generator: torch.Generator) -> MotionBatch:
    """Circles entered at any angle: no latent says where, so that chunks drawn apart do not meet."""
    angles = 2 * torch.pi * torch.rand(batch, 1, generator=generator) + 0.5 * torch.arange(HORIZON)
    return MotionBatch(
        states=torch.zeros(batch, HORIZON, 1),
        actions=torch.stack([angles.sin(), angles.cos()], -1),
        step_mask=torch.ones(batch, HORIZON, dtype=torch.bool),
        action_mask=torch.ones(batch, 2, dtype=torch.bool),
        embodiment=torch.zeros(batch, dtype=torch.int64),
    )


class Spy:
    """A decoder that remembers what it was given and predicts nothing."""

    def __init__(self) -> None:
        self.x = self.time = torch.empty(0)
        self.given: Tensor | None = None

    def __call__(self, x: Tensor, time: Tensor, latent: Tensor, embodiment: Tensor, given: Tensor | None) -> Tensor:
        self.x, self.time, self.given = x, time, given
        return torch.zeros_like(x)


def loss_of(spy: Spy, motion: MotionBatch, max_inference_delay: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(5)
    loss = flow_loss(
        spy,  # pyright: ignore[reportArgumentType]
        torch.zeros(len(motion.actions), LATENT_DIM),
        motion,
        generator,
        max_inference_delay=max_inference_delay,
    )
    return loss, generator


def test_the_first_actions_are_given_as_they_are_and_the_loss_counts_the_rest() -> None:
    motion, spy = waves(400, torch.Generator().manual_seed(0)), Spy()
    loss, _ = loss_of(spy, motion, 3)
    assert spy.given is not None
    delays = spy.given.sum(1)
    assert torch.equal(spy.given, torch.arange(HORIZON) < delays[:, None])
    # None for 4 draws in 7, then one each.
    torch.testing.assert_close(delays.bincount() / 400, torch.tensor([4, 1, 1, 1]) / 7, atol=0.06, rtol=0)
    torch.testing.assert_close(spy.x[spy.given], motion.actions[spy.given])
    # Where nothing is predicted, the loss is the mean square of actions - noise, and x = a - (1 - r)(a - noise).
    target = (motion.actions - spy.x) / (1 - spy.time)[:, None, None]
    counted = ~spy.given[:, :, None].expand_as(target)
    torch.testing.assert_close(loss, masked_mean(target.square(), counted), atol=1e-4, rtol=1e-4)


def test_without_a_delay_nothing_is_given_and_nothing_more_is_drawn() -> None:
    motion, plain, delayed = waves(16, torch.Generator().manual_seed(0)), Spy(), Spy()
    _, after = loss_of(plain, motion, 0)
    generator = torch.Generator().manual_seed(5)
    torch.randn(16, HORIZON, 2, generator=generator)
    torch.randn(16, generator=generator)
    assert plain.given is None and torch.equal(after.get_state(), generator.get_state())
    loss_of(delayed, motion, 3)
    assert torch.equal(plain.time, delayed.time)  # noise and time are those of a run without


@pytest.fixture(scope="module")
def trained() -> ActionDecoder:
    decoder, generator = make_decoder(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    num_steps = 250
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / num_steps)
        loss = flow_loss(decoder, torch.zeros(128, LATENT_DIM), waves(128, generator), generator, max_inference_delay=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder.eval()


def test_either_method_continues_where_a_chunk_of_its_own_jumps(trained: ActionDecoder) -> None:
    batch, delay, generator = 64, 4, torch.Generator().manual_seed(2)
    previous = waves(batch, generator).actions
    mask = torch.arange(HORIZON) < delay
    weights = soft_mask(action_horizon=HORIZON, inference_delay=delay, execution_horizon=4, num_previous=HORIZON)
    prefix = Prefix(rows=range(batch), previous=previous, mask=mask.expand(batch, HORIZON))
    guidance = Guidance(
        rows=range(batch),
        previous=previous,
        weights=weights.expand(batch, HORIZON),
        max_weight=torch.full((batch,), 5.0),
    )
    noise = torch.randn(batch, HORIZON, 2, generator=generator)

    def seam(*continuations: Continuation) -> float:
        """Mean distance between where the previous chunk goes on and where the new one takes over."""
        with torch.inference_mode():
            chunk = trained.sample(
                noise,
                torch.zeros(batch, LATENT_DIM),
                torch.zeros(batch, dtype=torch.int64),
                torch.ones(batch, 2, dtype=torch.bool),
                [5] * batch,
                continuations,
            )
        return float((chunk - previous)[:, delay].norm(dim=-1).mean())

    replaced = seam()
    assert seam(guidance) < 0.75 * replaced
    assert seam(prefix) < 0.1 * replaced


def test_a_recipe_with_a_negative_delay_is_refused() -> None:
    recipe = Recipe.load("demo")
    with pytest.raises(ValueError, match=r"stage2\.max_inference_delay is -1"):
        replace(recipe.stage2, max_inference_delay=-1)
    assert recipe.stage2.max_inference_delay == 0
    assert replace(recipe, stage2=replace(recipe.stage2, max_inference_delay=4)).variant == recipe.variant
