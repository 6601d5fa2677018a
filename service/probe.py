"""The checkpoint's probe as requests to a backend: what a revision must answer before it counts as ready.

Owns reading probe.npz without torch and the comparison of values. Does not own recording (the policy did) or when
probing happens (the backends decide). Values are compared, not status codes: a backend that corrupts tensors answers
OK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.backend import BackendChunk, BackendRequest
from service.revision import Revision, RevisionError

# Largest |answer - expected| / (1 + |expected|): processors round differently, a wrong model is far outside. These are
# the numbers of the policy's own check.
TOLERANCE: Mapping[str, float] = {"fp32": 1e-3, "bf16": 0.15}


class ProbeError(Exception):
    """A revision answers its probe with other values than were recorded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeCase:
    """A recorded observation and the chunk it must give."""

    request: BackendRequest
    # float32 [action_horizon, action_dim]
    expected: np.ndarray

    def check(self, chunk: BackendChunk, *, dtype: str) -> None:
        """Raises ProbeError with how far the answer is off."""
        if chunk.actions.shape != self.expected.shape:
            raise ProbeError(f"probe.npz: a chunk came as {chunk.actions.shape}, expected {self.expected.shape}")
        worst = float(np.max(np.abs(chunk.actions - self.expected) / (1.0 + np.abs(self.expected))))
        # Written so that NaN fails too.
        if not worst <= TOLERANCE[dtype]:
            raise ProbeError(
                f"probe.npz: a chunk is off by {worst:.3g}, expected at most {TOLERANCE[dtype]:g} in {dtype}"
            )


def read_probe(revision: Revision) -> tuple[ProbeCase, ...]:
    """Every recorded case, at least one. Raises RevisionError when probe.npz does not hold what it must."""
    try:
        # Opened here, for numpy leaves what is no archive open.
        with (revision.directory / "probe.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            cases = tuple(_read_case(arrays, index, revision) for index in range(int(arrays["num_requests"])))
    except Exception as error:  # zipfile, zlib, tokenize and numpy each have errors of their own for damaged bytes
        raise RevisionError(f"probe.npz cannot be read: {error!r}") from None
    if not cases:
        raise RevisionError("probe.npz holds no case, expected at least one")
    return cases


def _read_case(arrays: Mapping[str, Any], index: int, revision: Revision) -> ProbeCase:
    def array(name: str, dtype: type[np.generic]) -> np.ndarray:
        return np.ascontiguousarray(arrays[f"{index}/{name}"], dtype=dtype)

    names = [embodiment.name for embodiment in revision.description.embodiments]
    embodiment_index = names.index(str(arrays[f"{index}/embodiment"]))
    cameras = revision.description.embodiments[embodiment_index].cameras
    state = array("state", np.float32)
    expected = array("expected", np.float32)
    if f"{index}/history_states" in arrays:
        history_states, history_actions = array("history_states", np.float32), array("history_actions", np.float32)
    else:
        history_states = np.zeros((0, state.shape[0]), np.float32)
        history_actions = np.zeros((0, expected.shape[1]), np.float32)
    request = BackendRequest(
        embodiment_index=embodiment_index,
        images=tuple(array(f"images/{camera.name}", np.uint8) for camera in cameras),
        state=state,
        instruction=str(arrays[f"{index}/instruction"]),
        history_states=history_states,
        history_actions=history_actions,
        seed=int(arrays[f"{index}/seed"]),
        num_inference_steps=int(arrays[f"{index}/num_inference_steps"]),
    )
    return ProbeCase(request=request, expected=expected)
