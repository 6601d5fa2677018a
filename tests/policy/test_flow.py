from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy.flow import integrate, interpolate, masked_mean, sample_time


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_steps", [[1, 1, 1, 1], [7, 7, 7, 7], [1, 2, 5, 32], [32, 3, 1, 8]])
def test_the_true_velocity_recovers_the_actions_at_any_number_of_steps(num_steps: list[int]) -> None:
    noise, actions = _draw(4, 6, 3, seed=1), _draw(4, 6, 3, seed=2)
    recovered = integrate(lambda x, time: actions - noise, noise, num_steps)
    torch.testing.assert_close(recovered, actions, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", [[1, 1], [4, 4], [3, 16]])
def test_the_velocity_field_of_a_single_chunk_leads_to_it_from_anywhere(num_steps: list[int]) -> None:
    actions = _draw(2, 6, 3, seed=1)
    recovered = integrate(
        lambda x, time: (actions - x) / (1 - time).clamp(min=1e-3)[:, None, None], _draw(2, 6, 3, seed=2), num_steps
    )
    torch.testing.assert_close(recovered, actions, atol=1e-5, rtol=0)


def test_each_sample_is_asked_at_its_own_times() -> None:
    # The Euler sum of v = 2 r over r = 0, 1/n, ..., (n - 1)/n is (n - 1)/n.
    num_steps = [1, 2, 5, 10]
    end = integrate(lambda x, time: (2 * time)[:, None, None].expand_as(x), torch.zeros(4, 2, 3), num_steps)
    expected = torch.tensor([(n - 1) / n for n in num_steps])[:, None, None].expand(4, 2, 3)
    torch.testing.assert_close(end, expected, atol=1e-6, rtol=0)


def test_a_sample_is_the_same_alone_and_among_others_with_other_step_counts() -> None:
    noise = _draw(3, 4, 2)
    together = integrate(lambda x, time: x.sin() + time[:, None, None], noise, [2, 9, 4])
    for row, count in enumerate([2, 9, 4]):
        alone = integrate(lambda x, time: x.sin() + time[:, None, None], noise[row : row + 1], [count])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)


def test_the_path_runs_from_noise_at_0_to_actions_at_1_at_constant_velocity() -> None:
    noise, actions = _draw(2, 4, 3, seed=1), _draw(2, 4, 3, seed=2)
    torch.testing.assert_close(interpolate(noise, actions, torch.zeros(2)), noise)
    torch.testing.assert_close(interpolate(noise, actions, torch.ones(2)), actions)
    moved = interpolate(noise, actions, torch.tensor([0.75, 0.5])) - interpolate(
        noise, actions, torch.tensor([0.25, 0.0])
    )
    torch.testing.assert_close(moved, 0.5 * (actions - noise))


def test_times_are_the_sigmoid_of_a_standard_normal() -> None:
    time = sample_time(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(time, torch.randn(40_000, generator=torch.Generator().manual_seed(0)).sigmoid())
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    normal = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    torch.testing.assert_close(time.quantile(quantiles), normal.sigmoid(), atol=0.01, rtol=0)


def test_a_masked_mean_is_the_mean_of_the_real_entries_alone() -> None:
    values = torch.tensor([[[1.0, torch.nan], [3.0, torch.inf]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    assert masked_mean(values, mask).item() == 2.0
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0


def test_masked_entries_get_no_gradient() -> None:
    values = _draw(2, 3, 4).requires_grad_()
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    masked_mean(values.square(), mask).backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.where(mask, 2 * values.detach() / mask.sum(), 0))
