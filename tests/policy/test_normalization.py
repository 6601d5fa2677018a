from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization
from policy.normalization import CLIP, Normalizer

_ARM = Group(name="arm", dim=2, kind=GroupKind.JOINT_POSITION, unit="rad", normalization=Normalization.QUANTILE)
_SPEC = EmbodimentSpec(
    name="arm",
    cameras=(Camera(name="front", height=8, width=8),),
    state=(_ARM, Group(name="rest", dim=2, kind=GroupKind.OTHER, unit="1", normalization=Normalization.MEAN_STD)),
    action=(
        Group(name="speed", dim=1, kind=GroupKind.JOINT_VELOCITY, unit="rad/s", normalization=Normalization.MEAN_STD),
        replace(_ARM, relative_to="arm"),
        Group(name="grip", dim=1, kind=GroupKind.GRIPPER, unit="1", normalization=Normalization.IDENTITY),
        Group(name="lift", dim=1, kind=GroupKind.OTHER, unit="m", normalization=Normalization.MIN_MAX),
    ),
    control_rate_hz=20.0,
)
_STATISTICS: dict[str, dict[str, list[float]]] = {
    "state": {"mean": [9.0, 9.0, 1.0, 5.0], "std": [9.0, 9.0, 0.5, 0.0], "q01": [-1, 0, 9, 9], "q99": [1, 4, 9, 9]},
    "action": {
        "mean": [10.0, 0, 0, 0, 0],
        "std": [2.0, 0, 0, 0, 0],
        "min": [0, 0, 0, 0, 3.0],
        "max": [0, 0, 0, 0, 7.0],
        "q01": [0, -0.5, 0.0, 0, 0],
        "q99": [0, 0.5, 0.2, 0, 0],
    },
}


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _changed(side: str, name: str, values: Any) -> dict[str, dict[str, Any]]:
    return {**_STATISTICS, side: {**_STATISTICS[side], name: values}}


def test_unnormalizing_undoes_normalizing() -> None:
    normalizer = Normalizer(_SPEC, _STATISTICS)
    actions, state = 5 * _draw(3, 7, 5), _draw(3, 4, seed=1)
    again = normalizer.unnormalize_action(normalizer.normalize_action(actions, state), state)
    torch.testing.assert_close(again, actions, atol=1e-5, rtol=1e-5)


def test_each_group_is_normalized_by_its_own_rule() -> None:
    # (14 - 10) / 2; (0.75 - 0.5) / 0.5; (4.15 - 4 - 0.1) / 0.1; as it is; (6 - 5) / 2
    actions, state = torch.tensor([[14.0, 0.75, 4.15, -0.3, 6.0]]), torch.tensor([0.5, 4.0, 0.0, 0.0])
    expected = torch.tensor([[2.0, 0.5, 0.5, -0.3, 0.5]])
    torch.testing.assert_close(Normalizer(_SPEC, _STATISTICS).normalize_action(actions, state), expected)


def test_a_relative_group_follows_the_state_it_is_relative_to() -> None:
    normalizer = Normalizer(_SPEC, _STATISTICS)
    chunk, state = torch.zeros(2, 6, 5), torch.tensor([[0.0, 0, 0, 0], [2.0, -3.0, 0, 0]])
    moved = normalizer.unnormalize_action(chunk, state)
    torch.testing.assert_close(moved[1] - moved[0], torch.tensor([0.0, 2.0, -3.0, 0, 0]).expand(6, 5))


def test_states_are_normalized_and_clipped() -> None:
    state = torch.tensor([[0.5, 3.0, 1.25, 5.25], [100.0, -100.0, 100.0, 5.0]])
    expected = torch.tensor([[0.5, 0.5, 0.5, 0.25], [CLIP, -CLIP, CLIP, 0.0]])
    torch.testing.assert_close(Normalizer(_SPEC, _STATISTICS).normalize_state(state), expected)


def test_a_dimension_that_never_moved_is_shifted_and_not_stretched() -> None:
    normalizer = Normalizer(_SPEC, _changed("action", "max", [0, 0, 0, 0, 3.0]))  # lift was 3 m in every frame
    action, state = torch.tensor([[10.0, 0, 0, 0, 3.0]]), torch.zeros(4)
    assert normalizer.normalize_action(action, state)[0, 4] == 0
    assert normalizer.unnormalize_action(torch.full((1, 5), 0.25), state)[0, 4] == 3.25


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"state": _STATISTICS["state"]}, "'arm' lack action.mean"),
        ({**_STATISTICS, "state": {"mean": [0.0] * 4, "std": [1.0] * 4}}, "'arm' lack state.q01"),
        (_changed("state", "q99", [1.0] * 3), r"state.q99 has shape \(3,\), expected 4 finite numbers"),
        (_changed("action", "std", [float("nan")] * 5), "action.std .* expected 5 finite numbers"),
        (_changed("action", "min", [float("-inf")] * 5), "action.min .* expected 5 finite numbers"),
        (_changed("action", "min", ["low"] * 5), "action.min holds what is no number, expected 5 finite numbers"),
        (_changed("action", "min", [[0.0], 1.0]), "action.min holds what is no number, expected 5 finite numbers"),
        ({**_STATISTICS, "state": [1.0]}, "'arm' lack state.q01"),
        ([], "'arm' lack state.q01"),
    ],
)
def test_bad_statistics_are_refused(statistics: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalizer(_SPEC, statistics)


def test_a_wrong_width_is_refused() -> None:
    normalizer = Normalizer(_SPEC, _STATISTICS)
    with pytest.raises(ValueError, match="state has 3 dimensions, embodiment 'arm' has 4"):
        normalizer.normalize_state(torch.zeros(3))
    with pytest.raises(ValueError, match="action has 4 dimensions, embodiment 'arm' has 5"):
        normalizer.normalize_action(torch.zeros(1, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="state has 5 dimensions, embodiment 'arm' has 4"):
        normalizer.unnormalize_action(torch.zeros(1, 5), torch.zeros(5))
