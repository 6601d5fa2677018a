"""A policy's description from a file, for wires that do not tell: what `policies NAME --json FILE` wrote.

Owns the reading. Does not own the writing, which is the command line's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from premotor.client.description import Camera, Embodiment, Group, PolicyDescription


def read_description_file(path: Path) -> PolicyDescription:
    """The one policy of the file. Raises ValueError for one that holds another number or no description, OSError."""
    try:
        (content,) = json.loads(path.read_text())
        return _description(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is no description of one policy: {type(error).__name__}: {error}") from None


def _description(content: Mapping[str, Any]) -> PolicyDescription:
    rest: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.items()
        if name != "embodiments"
    }
    return PolicyDescription(**rest, embodiments=tuple(_embodiment(each) for each in content["embodiments"]))


def _embodiment(content: Mapping[str, Any]) -> Embodiment:
    return Embodiment(
        name=content["name"],
        cameras=tuple(Camera(**camera) for camera in content["cameras"]),
        state=tuple(_group(group) for group in content["state"]),
        action=tuple(_group(group) for group in content["action"]),
        control_rate_hz=content["control_rate_hz"],
    )


def _group(content: Mapping[str, Any]) -> Group:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return Group(**values)
