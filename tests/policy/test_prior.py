from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy.flow import masked_mean
from policy.prior import ActionPrior, EmbodimentLinear, PriorConfig, normalize_latent
from policy.trunk import TrunkConfig

_TRUNK = TrunkConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48, rope_theta=1e4)
_STATE_DIMS, _ACTION_DIMS = (3, 5), (2, 4)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prior() -> ActionPrior:
    torch.manual_seed(0)
    config = PriorConfig(
        num_embodiments=2,
        max_state_dim=5,
        max_action_dim=4,
        latent_dim=24,
        num_soft_tokens=2,
        encoder=_TRUNK,
        decoder=_TRUNK,
    )
    prior = ActionPrior(config).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return prior


def _window(steps: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, actions, step mask and embodiment of one window per body, padded dimensions zero."""
    states, actions = _draw(2, steps, 5, seed=1), _draw(2, steps, 4, seed=2)
    states[0, :, 3:] = 0
    actions[0, :, 2:] = 0
    return states, actions, torch.ones(2, steps, dtype=torch.bool), torch.tensor([0, 1])


def _action_mask() -> Tensor:
    return torch.arange(4) < torch.tensor(_ACTION_DIMS)[:, None]


@torch.no_grad()
def test_the_motion_latent_has_unit_root_mean_square(prior: ActionPrior) -> None:
    z = prior.encoder(*_window())
    assert z.shape == (2, 24)
    torch.testing.assert_close(z.square().mean(-1), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalize_latent(3 * z), z, atol=1e-4, rtol=0)


@torch.no_grad()
def test_masked_steps_are_not_read(prior: ActionPrior) -> None:
    states, actions, mask, embodiment = _window()
    mask[0, :2], mask[1, 4:] = False, False
    z = prior.encoder(states, actions, mask, embodiment)
    states[~mask], actions[~mask] = 50.0, -50.0
    torch.testing.assert_close(prior.encoder(states, actions, mask, embodiment), z, atol=1e-6, rtol=0)
    assert (prior.encoder(states, actions, torch.ones_like(mask), embodiment) - z).abs().max() > 1e-2


@torch.no_grad()
def test_a_padded_window_equals_the_shorter_one(prior: ActionPrior) -> None:
    states, actions, mask, embodiment = _window()
    mask[:, 4:] = False
    padded = prior.encoder(states, actions, mask, embodiment)
    short = prior.encoder(states[:, :4], actions[:, :4], mask[:, :4], embodiment)
    torch.testing.assert_close(padded, short, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_empty_window_gives_a_finite_latent(prior: ActionPrior) -> None:
    states, actions, mask, embodiment = _window()
    assert prior.encoder(states, actions, torch.zeros_like(mask), embodiment).isfinite().all()


@torch.no_grad()
def test_what_the_encoder_does_with_padded_dimensions_does_not_matter(prior: ActionPrior) -> None:
    window = _window()
    z = prior.encoder(*window)
    prior.encoder.state_in.weight[0, 3:] = 7.0
    prior.encoder.action_in.weight[0, 2:] = 7.0
    assert torch.equal(prior.encoder(*window), z)


@torch.no_grad()
def test_the_order_of_steps_is_read(prior: ActionPrior) -> None:
    states, actions, mask, embodiment = _window()
    z = prior.encoder(states, actions, mask, embodiment)
    assert (prior.encoder(states.flip(1), actions.flip(1), mask, embodiment) - z).abs().max() > 1e-3


@torch.no_grad()
def test_a_body_has_its_own_projections_and_soft_tokens(prior: ActionPrior) -> None:
    z = prior.encoder(*_window())
    for parameter in (prior.encoder.state_in.weight, prior.encoder.action_in.bias, prior.encoder.soft_tokens):
        parameter[1] += 1.0
    after = prior.encoder(*_window())
    torch.testing.assert_close(after[0], z[0], atol=1e-6, rtol=0)
    assert (after[1] - z[1]).abs().max() > 1e-2


@torch.no_grad()
def test_each_sample_goes_through_its_embodiments_affine_map() -> None:
    torch.manual_seed(0)
    linear = EmbodimentLinear(3, 4, 5)
    linear.bias.normal_()
    x, embodiment = _draw(2, 6, 4), torch.tensor([2, 0])
    for row, index in enumerate(embodiment):
        expected = x[row] @ linear.weight[index] + linear.bias[index]
        torch.testing.assert_close(linear(x, embodiment)[row], expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_sampled_chunks_are_zero_in_padded_dimensions_and_blind_to_their_noise(prior: ActionPrior) -> None:
    noise, latent, embodiment = _draw(2, 6, 4), normalize_latent(_draw(2, 24, seed=3)), torch.tensor([0, 1])
    chunk = prior.decoder.sample(noise, latent, embodiment, _action_mask(), [3, 5])
    assert not chunk[0, :, 2:].any()
    assert chunk[0, :, :2].all() and chunk[1].all()
    noise[0, :, 2:] = 40.0
    assert torch.equal(prior.decoder.sample(noise, latent, embodiment, _action_mask(), [3, 5]), chunk)


@torch.no_grad()
def test_a_chunk_depends_on_its_own_latent(prior: ActionPrior) -> None:
    noise, latent, embodiment = _draw(2, 6, 4), normalize_latent(_draw(2, 24, seed=3)), torch.tensor([0, 1])
    chunk = prior.decoder.sample(noise, latent, embodiment, _action_mask(), [4, 4])
    latent[1] = -latent[1]
    after = prior.decoder.sample(noise, latent, embodiment, _action_mask(), [4, 4])
    torch.testing.assert_close(after[0], chunk[0], atol=1e-6, rtol=0)
    assert (after[1] - chunk[1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_chunk_alone_equals_the_same_chunk_in_a_mixed_batch(prior: ActionPrior) -> None:
    noise, latent, embodiment = _draw(2, 6, 4), normalize_latent(_draw(2, 24, seed=3)), torch.tensor([0, 1])
    together = prior.decoder.sample(noise, latent, embodiment, _action_mask(), [3, 8])
    for row, steps in enumerate([3, 8]):
        one = slice(row, row + 1)
        alone = prior.decoder.sample(noise[one], latent[one], embodiment[one], _action_mask()[one], [steps])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)


def test_padded_dimensions_teach_nothing(prior: ActionPrior) -> None:
    noise, actions, embodiment = _draw(2, 6, 4), _draw(2, 6, 4, seed=5), torch.tensor([0, 1])
    velocity = prior.decoder(noise, torch.full((2,), 0.5), normalize_latent(_draw(2, 24, seed=3)), embodiment)
    masked_mean((velocity - actions).square(), _action_mask()[:, None].expand(-1, 6, -1)).backward()
    gradient = prior.decoder.velocity_out.weight.grad
    assert gradient is not None
    assert not gradient[0, :, 2:].any()
    assert gradient[0, :, :2].any() and gradient[1].any()


@torch.no_grad()
def test_given_actions_are_at_flow_time_1_and_the_rest_is_not(prior: ActionPrior) -> None:
    noisy, latent, embodiment = _draw(2, 6, 4, seed=5), _draw(2, 24, seed=6), torch.tensor([0, 1])
    everything, nothing = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    early, late = torch.full((2,), 0.3), torch.ones(2)

    def velocity(time: Tensor, given: Tensor | None = None) -> Tensor:
        return prior.decoder(noisy, time, latent, embodiment, given)

    torch.testing.assert_close(velocity(early, nothing), velocity(early), atol=1e-6, rtol=0)
    torch.testing.assert_close(velocity(late, everything), velocity(late), atol=1e-6, rtol=0)
    half = velocity(early, torch.arange(6).expand(2, 6) < 3)
    for other in (velocity(early), velocity(late)):
        assert (half - other).abs().amax((0, 2)).min() > 1e-4
