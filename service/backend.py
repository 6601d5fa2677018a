"""What the gateway asks of whatever computes chunks.

Owns the request and answer that cross from the gateway to a backend, the protocol a backend speaks and the ways it may
fail. Does not own validation (the gateway has done it), routing or any model; knows nothing of gRPC or torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

RealTimeChunkingMethod = Literal["guidance", "prefix"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RealTimeChunking:
    """The chunk being played, which the new one continues by `method`."""

    # float32 [num_actions, action_dim], at least 1 row; row 0 is for the instant of the observation.
    previous_actions: np.ndarray
    # How many of them will have been played when the new chunk takes over.
    inference_delay: int
    # Actions that the robot plays before it asks again.
    execution_horizon: int
    method: RealTimeChunkingMethod
    # Of guidance alone.
    max_guidance_weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendRequest:
    """One observation, checked against the policy it is for. The arrays may be read-only views of the wire's bytes."""

    # Position in the checkpoint's embodiments.json.
    embodiment_index: int
    # uint8 [height, width, 3], RGB, C-contiguous, in the order of the embodiment's cameras.
    images: tuple[np.ndarray, ...]
    # float32 [state_dim]
    state: np.ndarray
    instruction: str
    # float32 [num_steps, state_dim], oldest first; num_steps is 0 without history.
    history_states: np.ndarray
    # float32 [num_steps, action_dim], the same num_steps.
    history_actions: np.ndarray
    seed: int
    num_inference_steps: int
    # None for a chunk of its own.
    real_time_chunking: RealTimeChunking | None = None
    # A copy for a shadow: no robot waits for its answer, so it waits for all that a robot does.
    is_shadow: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendChunk:
    """One chunk and where its time went."""

    # float32 [action_horizon, action_dim]
    actions: np.ndarray
    # The forward passes of the batch this request was in.
    inference_s: float
    # Everything else between `predict` being called and returning: waiting for a batch, crossing to the model and back.
    queue_s: float
    # How many requests those forward passes were for.
    batch_size: int = 1


class Backend(Protocol):
    """Where chunks are computed: Triton, or the same Policy in process."""

    def capacity(self, revision: str) -> int:
        """How many requests of a revision are of use in `predict` at a time, at least 1: what runs and the next batch.

        Nobody waits in `predict` for a turn: the gateway's queue knows who should have it.
        """
        ...

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        """Raises a BackendError of one of the kinds below, and nothing else.

        Returns or raises within `timeout_s`. A cancelled call gives its place up.
        """
        ...

    async def ready(self, revision: str) -> bool:
        """Whether the revision's probe has passed and its model answers. Cheap: the last known state; never raises."""
        ...

    async def close(self) -> None:
        """Releases what the backend holds; a call in progress ends in BackendUnavailableError."""
        ...


class BackendError(Exception):
    """A backend gave no chunk. The message is for the log: it never leaves the process."""


class BackendUnavailableError(BackendError):
    """The backend is starting, restarting or gone, or lacks the revision: the same request may succeed later."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendFailedError(BackendError):
    """The backend took the request and failed on it."""


class InstructionRefusedError(BackendError):
    """The instruction has more tokens than the model reads, which it alone can count. The caller may read `found`."""

    field = "observation.instruction"

    def __init__(self, found: str) -> None:
        super().__init__(f"{self.field}: {found}")
        self.found = found


class BackendDeadlineError(BackendError):
    """The time given to the request passed before the backend answered."""
