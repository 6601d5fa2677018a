"""Physical units to model units and back, per embodiment and group.

Owns the arithmetic and the check of statistics; computing statistics belongs to training. The same object serves
training and inference: `unnormalize_action` undoes `normalize_action` exactly on every dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policy.embodiment import EmbodimentSpec, Group, Normalization, group_slices

# A dimension that never moved has no scale of its own; below this range it passes through shifted, not stretched.
RANGE_FLOOR = 1e-4
# Values this far outside the training range carry no more information for the model, only risk.
CLIP = 1.5
_REQUIRED = {
    Normalization.IDENTITY: (),
    Normalization.MIN_MAX: ("min", "max"),
    Normalization.MEAN_STD: ("mean", "std"),
    Normalization.QUANTILE: ("q01", "q99"),
}

Statistics = Mapping[str, Mapping[str, Sequence[float]]]


class Normalizer:
    """Statistics of one embodiment, applied: "state" and "action", each name -> one number a dimension.

    Action statistics are those of the relative form where a group is relative. Raises ValueError for statistics that
    are missing, of the wrong length or no finite numbers.
    """

    def __init__(self, spec: EmbodimentSpec, statistics: Statistics) -> None:
        self.spec = spec
        self._state_offset, self._state_scale = _affine(spec, "state", spec.state, statistics)
        self._action_offset, self._action_scale = _affine(spec, "action", spec.action, statistics)
        self._anchors = _relative_columns(spec)

    def normalize_state(self, state: Float[Tensor, "*batch state_dim"]) -> Float[Tensor, "*batch state_dim"]:
        self._check("state", state, self.spec.state_dim)
        return ((state - self._state_offset) / self._state_scale).clamp(-CLIP, CLIP)

    def normalize_action(
        self, action: Float[Tensor, "*batch steps action_dim"], state: Float[Tensor, "*batch state_dim"]
    ) -> Float[Tensor, "*batch steps action_dim"]:
        """`state` is the observation's, in physical units: what relative groups are relative to."""
        self._check("action", action, self.spec.action_dim)
        return ((action - self._anchor(state)) - self._action_offset) / self._action_scale

    def unnormalize_action(
        self, action: Float[Tensor, "*batch steps action_dim"], state: Float[Tensor, "*batch state_dim"]
    ) -> Float[Tensor, "*batch steps action_dim"]:
        self._check("action", action, self.spec.action_dim)
        return action * self._action_scale + self._action_offset + self._anchor(state)

    def _anchor(self, state: Tensor) -> Tensor:
        self._check("state", state, self.spec.state_dim)
        anchor = state.new_zeros(*state.shape[:-1], self.spec.action_dim)
        for action_columns, state_columns in self._anchors:
            anchor[..., action_columns] = state[..., state_columns]
        return anchor.unsqueeze(-2)

    def _check(self, what: str, values: Tensor, dim: int) -> None:
        if values.shape[-1] != dim:
            raise ValueError(f"{what} has {values.shape[-1]} dimensions, embodiment {self.spec.name!r} has {dim}")


def _relative_columns(spec: EmbodimentSpec) -> list[tuple[slice, slice]]:
    state_columns = {group.name: columns for group, columns in group_slices(spec.state)}
    return [
        (columns, state_columns[group.relative_to])
        for group, columns in group_slices(spec.action)
        if group.relative_to is not None
    ]


def _affine(
    spec: EmbodimentSpec, side: str, groups: tuple[Group, ...], statistics: Statistics
) -> tuple[Tensor, Tensor]:
    dim = sum(group.dim for group in groups)
    offset, scale = torch.zeros(dim), torch.ones(dim)
    for group, columns in group_slices(groups):
        names = _REQUIRED[group.normalization]
        low_high = [_column(spec, side, statistics, name, dim)[columns] for name in names]
        if not low_high:
            continue
        first, second = low_high
        if group.normalization is Normalization.MEAN_STD:
            offset[columns], spread = first, second
        else:
            offset[columns], spread = (first + second) / 2, (second - first) / 2
        scale[columns] = torch.where(spread < RANGE_FLOOR, torch.ones_like(spread), spread)
    return offset, scale


def _column(spec: EmbodimentSpec, side: str, statistics: Statistics, name: str, dim: int) -> Tensor:
    of_side: Any = statistics.get(side) if isinstance(statistics, Mapping) else None
    values = of_side.get(name) if isinstance(of_side, Mapping) else None
    if values is None:
        raise ValueError(f"statistics of embodiment {spec.name!r} lack {side}.{name}")
    try:
        column = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError):
        raise ValueError(
            f"statistics of embodiment {spec.name!r}: {side}.{name} holds what is no number, "
            f"expected {dim} finite numbers"
        ) from None
    if column.shape != (dim,) or not column.isfinite().all():
        raise ValueError(
            f"statistics of embodiment {spec.name!r}: {side}.{name} has shape {tuple(column.shape)}, "
            f"expected {dim} finite numbers"
        )
    return column
