"""Guidance and prefix against closed forms, and what they do to a whole policy: its plain chunks, batches, units."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policy.checkpoint import read_checkpoint, write_checkpoint
from policy.config import ModelConfig
from policy.embodiment import EmbodimentSpec
from policy.flow import integrate
from policy.policy import InvalidObservationError, Policy
from policy.real_time import Guidance, Prefix, guidance_weight, soft_mask
from policy.request import ChunkRequest, RealTimeChunking

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop"
# Of a batch's arithmetic, which rounds otherwise than one sample's.
ROUNDING = 1e-5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("delay", "execution", "num_previous"), [(3, 5, 11), (0, 8, 8), (4, 4, 16), (2, 6, 6)])
def test_the_soft_mask_is_the_papers(delay: int, execution: int, num_previous: int) -> None:
    def weight(i: int) -> float:
        if i >= num_previous or i >= max(16 - execution, delay):
            return 0.0
        c = (16 - execution - i) / (16 - execution - delay + 1)
        return 1.0 if i < delay else c * (math.exp(c) - 1) / (math.e - 1)

    mask = soft_mask(action_horizon=16, inference_delay=delay, execution_horizon=execution, num_previous=num_previous)
    torch.testing.assert_close(mask, torch.tensor([weight(i) for i in range(16)]), atol=1e-6, rtol=0)
    assert (mask.diff() <= 0).all()


def test_a_delay_beyond_the_overlap_binds_what_will_have_been_played_and_nothing_more() -> None:
    mask = soft_mask(action_horizon=8, inference_delay=6, execution_horizon=5, num_previous=7)
    assert mask.tolist() == [1.0] * 6 + [0.0] * 2


def test_without_delay_and_overlap_nothing_is_bound() -> None:
    assert not soft_mask(action_horizon=8, inference_delay=0, execution_horizon=8, num_previous=8).any()


def test_the_guidance_weight_is_the_papers_and_never_more_than_allowed() -> None:
    time, most = torch.tensor([0.0, 0.01, 0.2, 0.5, 0.8, 0.999, 1.0]), 4.5
    squared = (1 - time) ** 2 / (time**2 + (1 - time) ** 2)
    expected = ((1 - time) / (time * squared)).nan_to_num(posinf=math.inf, nan=math.inf).clamp(max=most)
    torch.testing.assert_close(guidance_weight(time, torch.full((7,), most)), expected)
    assert expected.tolist()[0] == expected.tolist()[-1] == most


# Of actions that are N(mean, 1), for which velocity and guidance have closed forms.
MEAN = 0.7


def of_normal_actions(x: Tensor, time: Tensor, given: Tensor | None = None) -> Tensor:
    """(E[actions | x_r] - x) / (1 - r)."""
    r = time[:, None, None]
    estimate = MEAN + r / (r**2 + (1 - r) ** 2) * (x - r * MEAN)
    return (estimate - x) / (1 - r)


def guidance(previous: Tensor, weights: Tensor, max_weight: float) -> Guidance:
    batch = len(previous)
    return Guidance(rows=range(batch), previous=previous, weights=weights, max_weight=torch.full((batch,), max_weight))


@pytest.mark.parametrize("num_steps", [2, 5, 32])
def test_a_chunk_that_is_bound_everywhere_is_the_previous_one(num_steps: int) -> None:
    # There v + w J (Y - A) is (Y - x) / (1 - r), whose Euler path ends at Y whatever the number of steps.
    noise, previous = draw(3, 6, 2, seed=1), draw(3, 6, 2, seed=2)
    guided = guidance(previous, torch.ones(3, 6), 1e3).velocity(of_normal_actions)
    torch.testing.assert_close(integrate(guided, noise, [num_steps] * 3), previous, atol=1e-5, rtol=0)


def test_the_papers_own_weight_is_enough_for_its_five_steps() -> None:
    noise, previous = draw(3, 6, 2, seed=1), draw(3, 6, 2, seed=2)
    guided = guidance(previous, torch.ones(3, 6), 5.0).velocity(of_normal_actions)
    torch.testing.assert_close(integrate(guided, noise, [5] * 3), previous, atol=1e-5, rtol=0)


def test_what_is_not_bound_moves_as_if_alone_and_what_is_half_bound_stops_on_the_way() -> None:
    noise, previous = draw(2, 3, 2, seed=1), draw(2, 3, 2, seed=2)
    weights = torch.tensor([1.0, 0.5, 0.0]).expand(2, 3)
    chunk = integrate(guidance(previous, weights, 1e3).velocity(of_normal_actions), noise, [8, 8])
    plain = integrate(of_normal_actions, noise, [8, 8])
    torch.testing.assert_close(chunk[:, 2], plain[:, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(chunk[:, 0], previous[:, 0], atol=1e-5, rtol=0)
    half, whole = (chunk - previous)[:, 1].norm(), (plain - previous)[:, 1].norm()
    assert 0.1 * whole < half < 0.9 * whole


def test_the_correction_goes_through_the_field() -> None:
    # v = M x + b across the actions of a chunk: A = x + (1 - r)(M x + b), so that J^T = I + (1 - r) M^T.
    mixing, offset, x = draw(4, 4, seed=1), draw(4, 1, seed=2), draw(1, 4, 1, seed=3)
    previous, weights, r = draw(1, 4, 1, seed=4), torch.tensor([[1.0, 0.5, 0.25, 0.0]]), 0.3
    velocity = guidance(previous, weights, 1e3).velocity(lambda x, time, given=None: mixing @ x + offset)
    v = mixing @ x + offset
    error = weights[:, :, None] * (previous - (x + (1 - r) * v))
    weight = (r**2 + (1 - r) ** 2) / (r * (1 - r))
    expected = v + weight * (torch.eye(4) + (1 - r) * mixing.T) @ error
    torch.testing.assert_close(velocity(x, torch.tensor([r])), expected, atol=1e-5, rtol=1e-5)


def test_a_prefix_stays_where_it_is_and_is_at_flow_time_1() -> None:
    noise, previous, asked = draw(2, 4, 2, seed=1), draw(2, 4, 2, seed=2), []
    mask = torch.arange(4) < torch.tensor([[1], [3]])

    def field(x: Tensor, time: Tensor, given: Tensor | None = None) -> Tensor:
        assert given is not None
        torch.testing.assert_close(x[mask], previous[mask])
        asked.append(given)
        return torch.ones_like(x)

    prefix = Prefix(rows=range(2), previous=previous, mask=mask)
    chunk = integrate(prefix.velocity(field), prefix.start(noise), [4, 4])
    torch.testing.assert_close(chunk, torch.where(mask[:, :, None], previous, noise + 1))
    assert len(asked) == 4 and all(torch.equal(given, mask) for given in asked)


@pytest.fixture
def policy(toy_checkpoint: Path) -> Policy:
    """The toy of two bodies, the second with relative actions, as if it had been trained for delays of up to 3."""
    parts = read_checkpoint(toy_checkpoint)
    parts.vla.config = replace(parts.vla.config, max_inference_delay=3)
    return Policy(vla=parts.vla, specs=parts.specs, statistics=parts.statistics, manifest={}, revision="")


@pytest.fixture
def arm(make_toy_request: Callable[..., ChunkRequest], toy_specs: tuple[EmbodimentSpec, ...]) -> ChunkRequest:
    return make_toy_request(toy_specs[0], seed=1)


@pytest.fixture
def pair(make_toy_request: Callable[..., ChunkRequest], toy_specs: tuple[EmbodimentSpec, ...]) -> ChunkRequest:
    return make_toy_request(toy_specs[1], seed=2, num_history_steps=2)


def continuing(request: ChunkRequest, method: str, action_dim: int, **changed) -> ChunkRequest:
    previous = 0.3 * draw(4, action_dim, seed=9)
    fields = {"previous_actions": previous, "inference_delay": 2, "execution_horizon": 1, "method": method, **changed}
    return replace(request, real_time_chunking=RealTimeChunking(**fields))


@pytest.mark.parametrize("method", ["guidance", "prefix"])
def test_without_delay_and_overlap_the_plain_chunk_comes_out_bit_for_bit(
    policy: Policy, pair: ChunkRequest, method: str
) -> None:
    asked = continuing(pair, method, 6, inference_delay=0, execution_horizon=4)
    assert torch.equal(policy.predict_chunk([asked])[0], policy.predict_chunk([pair])[0])


def test_a_chunk_is_the_same_alone_and_among_others_that_continue_otherwise(
    policy: Policy, arm: ChunkRequest, pair: ChunkRequest
) -> None:
    batch = [
        arm,
        continuing(pair, "guidance", 6),
        continuing(arm, "prefix", 3, inference_delay=1),
        replace(continuing(arm, "guidance", 3, inference_delay=0), num_inference_steps=7),
        pair,
        continuing(pair, "prefix", 6, inference_delay=3),
    ]
    for request, chunk in zip(batch, policy.predict_chunk(batch), strict=True):
        torch.testing.assert_close(chunk, policy.predict_chunk([request])[0], atol=ROUNDING, rtol=0)


def test_a_prefix_comes_back_in_physical_units_even_where_actions_are_relative(
    policy: Policy, pair: ChunkRequest
) -> None:
    asked = continuing(pair, "prefix", 6, inference_delay=3)
    assert asked.real_time_chunking is not None
    chunk, plain = policy.predict_chunk([asked])[0], policy.predict_chunk([pair])[0]
    torch.testing.assert_close(chunk[:3], asked.real_time_chunking.previous_actions[:3], atol=1e-6, rtol=0)
    assert (chunk[3] - plain[3]).abs().max() > 1e-3  # the rest follows from it


def test_guidance_brings_a_chunk_nearer_to_the_previous_one(policy: Policy, pair: ChunkRequest) -> None:
    asked = replace(continuing(pair, "guidance", 6), num_inference_steps=8)
    assert asked.real_time_chunking is not None
    plain = policy.predict_chunk([replace(pair, num_inference_steps=8)])[0]
    previous, chunk = asked.real_time_chunking.previous_actions, policy.predict_chunk([asked])[0]
    assert (chunk[:2] - previous[:2]).norm() < 0.5 * (plain[:2] - previous[:2]).norm()


def test_either_method_works_in_bf16(toy_checkpoint: Path, policy: Policy, arm: ChunkRequest) -> None:
    parts = read_checkpoint(toy_checkpoint)
    parts.vla.config = policy.config
    rounded = Policy(
        vla=parts.vla, specs=parts.specs, statistics=parts.statistics, manifest={}, revision="", dtype="bf16"
    )
    batch = [continuing(arm, "guidance", 3), arm, continuing(arm, "prefix", 3)]
    for chunk, exact in zip(rounded.predict_chunk(batch), policy.predict_chunk(batch), strict=True):
        torch.testing.assert_close(chunk, exact, atol=0.1, rtol=0.1)


def test_scaled_noise_is_the_flow_to_scaled_doubt_of_which_guidance_is_the_same() -> None:
    # Of actions N(0, 1): the field from s * noise ends s times nearer to the mean, and the guided one still at Y.
    noise, previous, bound = draw(2, 6, 2, seed=1), draw(2, 6, 2, seed=2), torch.ones(2, 6)
    whole = integrate(of_normal_actions, noise, [16, 16])
    part = integrate(of_normal_actions, 0.2 * noise, [16, 16])
    mean = integrate(of_normal_actions, 0.0 * noise, [16, 16])
    torch.testing.assert_close(part - mean, 0.2 * (whole - mean), atol=1e-5, rtol=0)
    guided = integrate(guidance(previous, bound, 1e3).velocity(of_normal_actions), 0.2 * noise, [16, 16])
    torch.testing.assert_close(guided, previous, atol=1e-5, rtol=0)


def test_only_guided_samples_pay_for_a_gradient_and_the_observation_is_read_once(
    policy: Policy, arm: ChunkRequest
) -> None:
    decoded: list[tuple[int, bool]] = []
    read: list[int] = []
    vla = policy._vla
    hooks = [
        vla.prior.decoder.trunk.register_forward_pre_hook(
            lambda module, inputs: decoded.append((len(inputs[0]), torch.is_grad_enabled()))
        ),
        vla.backbone.register_forward_pre_hook(lambda module, inputs: read.append(len(inputs[0].images))),
    ]
    try:
        policy.predict_chunk([arm, continuing(arm, "guidance", 3), arm, continuing(arm, "prefix", 3)])
    finally:
        for hook in hooks:
            hook.remove()
    assert sorted(set(decoded)) == [(1, False), (1, True), (2, False)]
    assert read == [4]


def test_guidance_leaves_weights_that_train_without_a_gradient(policy: Policy, arm: ChunkRequest) -> None:
    policy._vla.requires_grad_(True)
    policy.predict_chunk([continuing(arm, "guidance", 3)])
    assert all(parameter.grad is None for parameter in policy._vla.parameters())


REFUSALS = {
    "narrow": ({"previous_actions": torch.zeros(4, 2)}, r"previous_actions has shape \(4, 2\), expected \(4, 3\)"),
    "NaN": ({"previous_actions": torch.full((4, 3), math.nan)}, "previous_actions holds a value that is not finite"),
    "empty": ({"previous_actions": torch.zeros(0, 3)}, "previous_actions' number is 0, expected 1 to 4"),
    "long": ({"previous_actions": torch.zeros(5, 3)}, "previous_actions' number is 5, expected 1 to 4"),
    "late": ({"inference_delay": 4}, "inference_delay is 4, expected 0 to 3"),
    "few": ({"previous_actions": torch.zeros(1, 3)}, "inference_delay is 2, expected 0 to 1"),
    "horizon": ({"execution_horizon": 5}, "execution_horizon is 5, expected 1 to 4"),
    "flat": ({"previous_actions": torch.zeros(3)}, r"previous_actions has shape \(3,\), expected a row a step"),
    "method": ({"method": "ensemble"}, r"method is 'ensemble', expected one of \['guidance', 'prefix'\]"),
    "weight": ({"max_guidance_weight": math.inf}, "max_guidance_weight is inf"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_with_numbers(policy: Policy, arm: ChunkRequest, name: str) -> None:
    changed, says = REFUSALS[name]
    with pytest.raises(InvalidObservationError, match=says):
        policy.predict_chunk([continuing(arm, **{"method": "guidance", "action_dim": 3, **changed})])


def test_a_checkpoint_that_was_not_trained_for_a_prefix_refuses_it(toy_checkpoint: Path, arm: ChunkRequest) -> None:
    with pytest.raises(InvalidObservationError, match="'prefix', which this checkpoint was not trained for"):
        Policy.from_checkpoint(toy_checkpoint).predict_chunk([continuing(arm, "prefix", 3, inference_delay=1)])


def test_a_config_without_a_delay_is_written_as_it_always_was() -> None:
    shipped = json.loads((SHIPPED / "config.json").read_text())["model"]
    assert {**shipped, "encoder_inputs": "state-action"} == ModelConfig.from_json(shipped).to_json()
    trained = replace(ModelConfig.from_json(shipped), max_inference_delay=4)
    assert ModelConfig.from_json(trained.to_json()) == trained


def test_a_checkpoint_says_what_it_was_trained_for_where_a_server_looks(policy: Policy, arm, tmp_path: Path) -> None:
    probe = [(replace(arm, num_inference_steps=2), policy.predict_chunk([replace(arm, num_inference_steps=2)])[0])]
    specs = list(policy.embodiments.values())
    parts = {"specs": specs, "statistics": [{} for _ in specs], "probe": probe, "manifest": {}}
    write_checkpoint(tmp_path / "trained", vla=policy._vla, **parts)
    policy._vla.config = replace(policy._vla.config, max_inference_delay=0)
    write_checkpoint(tmp_path / "plain", vla=policy._vla, **parts)
    trained, plain = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("trained", "plain"))
    assert trained["max_inference_delay"] == trained["model"]["max_inference_delay"] == 3
    assert "max_inference_delay" not in json.dumps(plain)


@pytest.mark.parametrize("delay", [-1, 16])
def test_a_delay_that_leaves_nothing_to_predict_is_refused(delay: int) -> None:
    shipped = json.loads((SHIPPED / "config.json").read_text())["model"]
    with pytest.raises(ValueError, match=f"max_inference_delay is {delay}, expected 0 to less than action_horizon 16"):
        ModelConfig.from_json({**shipped, "max_inference_delay": delay})
