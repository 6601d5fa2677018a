"""The bodies by name: each file here is one. Importing them imports no simulator."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from policy.embodiment import EmbodimentSpec


class Body(Protocol):
    """What a body's file holds."""

    SPEC: EmbodimentSpec
    DISTURBANCE_SCALE: float  # standard deviation of a disturbance's offset per dimension, in the action's own unit


def load_body(name: str) -> Body:
    """Raises ModuleNotFoundError for a body without a file."""
    return cast(Body, importlib.import_module(f"{__name__}.{name}"))
