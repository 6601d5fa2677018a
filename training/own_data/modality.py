"""GR00T's modality.json: which columns of state and action make a group, which videos are cameras, where words are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.lerobot.embodiment import ACTION_KEY, STATE_KEY
from training.data.lerobot.layout import DatasetError

_KEYS = {"state": STATE_KEY, "action": ACTION_KEY}


@dataclass(frozen=True, kw_only=True)
class ModalityGroup:
    """Columns `start` to `stop` of a vector. `absolute` and `is_rotation` are None where the file does not say."""

    name: str
    start: int
    stop: int
    absolute: bool | None = None
    is_rotation: bool | None = None

    @property
    def dim(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Groups in the order of their columns; columns that the file leaves out are groups of their own."""

    state: tuple[ModalityGroup, ...]
    action: tuple[ModalityGroup, ...]
    camera_keys: tuple[str, ...]
    instruction_columns: tuple[str, ...]


def read_modality(path: Path, *, state_dim: int, action_dim: int) -> Modality:
    """Raises DatasetError naming the entry that no data set of these widths can have."""
    values = json.loads(path.read_text())
    if not isinstance(values, Mapping) or not {"state", "action", "video"} <= set(values):
        raise DatasetError(f"{path}: not a modality.json, expected the keys state, action and video")
    return Modality(
        state=_groups(path, "state", values["state"], state_dim),
        action=_groups(path, "action", values["action"], action_dim),
        camera_keys=tuple(
            str(entry.get("original_key", f"observation.images.{name}")) for name, entry in values["video"].items()
        ),
        instruction_columns=tuple(
            str(entry.get("original_key", f"annotation.{name}")) for name, entry in values.get("annotation", {}).items()
        ),
    )


def _groups(path: Path, side: str, entries: Mapping[str, Mapping[str, Any]], dim: int) -> tuple[ModalityGroup, ...]:
    groups: list[ModalityGroup] = []
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: int(item[1].get("start", 0))):
        where = f"{path}: {side}.{name}"
        key = entry.get("original_key", _KEYS[side])
        if key != _KEYS[side]:
            raise DatasetError(
                f"{where} reads column {key!r}, expected {_KEYS[side]!r}: one vector holds all groups of a side. "
                f"Join the columns into {_KEYS[side]!r} and give start and end there"
            )
        start, stop = int(entry.get("start", 0)), int(entry.get("end", dim))
        if not position <= start < stop <= dim:
            raise DatasetError(
                f"{where} has start {start} and end {stop}, expected {position} <= start < end <= {dim}, "
                f"the width of {_KEYS[side]!r}: groups may not overlap"
            )
        if start > position:
            groups.append(_unassigned(position, start))
        absolute = entry.get("absolute")
        groups.append(
            ModalityGroup(
                name=name,
                start=start,
                stop=stop,
                absolute=None if absolute is None else bool(absolute),
                is_rotation=True if entry.get("rotation_type") else None,
            )
        )
        position = stop
    if position < dim:
        groups.append(_unassigned(position, dim))
    return tuple(groups)


def _unassigned(start: int, stop: int) -> ModalityGroup:
    return ModalityGroup(name=f"unassigned_{start}_{stop}", start=start, stop=stop)
