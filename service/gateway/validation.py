"""Whether a request fits the policy it is for, judged by the published description alone.

Owns every check on a request's fields and the first reading of its tensors; each refusal names the field, what came and
what was expected. Does not own decoding of image files (images.py), which it leaves for after admission.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from premotor.v1 import policy_pb2
from premotor.wire import WireError, decode_duration, decode_tensor
from service.backend import RealTimeChunking
from service.errors import InvalidRequestError, nearest_name, quoted
from service.gateway.images import Frame, inspect_image
from service.gateway.limits import GatewayLimits
from service.gateway.numbers import require_plausible
from service.gateway.real_time_chunking import check_real_time_chunking

MAX_SEED = 2**63 - 1
# More than any robot meets between two requests; one that says more would spoil what is counted of all.
MAX_UNDERRUNS = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedRequest:
    """A request that fits, its image files still encoded. The arrays are read-only views of the request's bytes."""

    embodiment_index: int
    # In the order of the embodiment's cameras.
    frames: tuple[Frame, ...]
    # float32 [state_dim]
    state: np.ndarray
    instruction: str
    # float32 [num_steps, state_dim] and [num_steps, action_dim]: the valid rows only.
    history_states: np.ndarray
    history_actions: np.ndarray
    # None when the caller leaves the choice to the server.
    seed: int | None
    num_inference_steps: int
    # 0 when the robot does not say.
    num_underruns: int
    # None when the chunk need not continue another.
    real_time_chunking: RealTimeChunking | None


@dataclass(frozen=True, kw_only=True)
class _Body:
    """What a request is compared with, computed once per embodiment."""

    index: int
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int


class RequestValidator:
    """Checks requests against one published policy."""

    def __init__(self, description: policy_pb2.Policy, limits: GatewayLimits) -> None:
        self._description = description
        self._limits = limits
        self._bodies = {
            embodiment.name: _Body(
                index=index,
                cameras=tuple(camera.name for camera in embodiment.cameras),
                state_dim=sum(group.dim for group in embodiment.state),
                action_dim=sum(group.dim for group in embodiment.action),
            )
            for index, embodiment in enumerate(description.embodiments)
        }

    def check(self, request: policy_pb2.PredictChunkRequest) -> CheckedRequest:
        """Raises InvalidRequestError for the first field that does not fit."""
        try:
            return self._check(request)
        except WireError as error:
            raise InvalidRequestError(error.field, error.message) from None

    def _check(self, request: policy_pb2.PredictChunkRequest) -> CheckedRequest:
        check_ids(request, self._limits)
        body = self._body(request.embodiment)
        if not request.HasField("observation"):
            raise InvalidRequestError("observation", "none came, it is required")
        observation = request.observation
        self._check_instruction(observation.instruction)
        if observation.HasField("capture_time"):
            decode_duration(observation.capture_time, field="observation.capture_time")
        state = self._state(observation, body)
        history_states, history_actions = self._history(request, body)
        return CheckedRequest(
            embodiment_index=body.index,
            frames=self._frames(observation, body),
            state=state,
            instruction=observation.instruction,
            history_states=history_states,
            history_actions=history_actions,
            seed=_seed(request),
            num_inference_steps=self._num_inference_steps(request),
            num_underruns=_num_underruns(request),
            real_time_chunking=check_real_time_chunking(
                request, self._description, action_dim=body.action_dim, limits=self._limits
            ),
        )

    def _body(self, name: str) -> _Body:
        if not name:
            if len(self._bodies) == 1:
                return next(iter(self._bodies.values()))
            raise InvalidRequestError("embodiment", f"none came, the policy drives {_listed(self._bodies)}: name one")
        body = self._bodies.get(name)
        if body is None:
            nearest = nearest_name(name, self._bodies)
            raise InvalidRequestError(
                "embodiment",
                f"{quoted(name)} came, the policy drives {_listed(self._bodies)}; the nearest name is {nearest!r}",
            )
        return body

    def _check_instruction(self, instruction: str) -> None:
        field = "observation.instruction"
        if not instruction.strip():
            raise InvalidRequestError(field, "an empty or blank text came, expected what to do in plain language")
        num_bytes = len(instruction.encode())
        if num_bytes > self._limits.max_instruction_bytes:
            raise InvalidRequestError(
                field, f"{num_bytes} bytes came, expected at most {self._limits.max_instruction_bytes}"
            )

    def _state(self, observation: policy_pb2.Observation, body: _Body) -> np.ndarray:
        field = "observation.state"
        if not observation.HasField("state"):
            raise InvalidRequestError(field, f"none came, expected float32 [{body.state_dim}]")
        state = decode_tensor(observation.state, field=field, dtype=np.float32, shape=(body.state_dim,))
        require_plausible(state, field=field, most=self._limits.max_abs_value)
        return state

    def _frames(self, observation: policy_pb2.Observation, body: _Body) -> tuple[Frame, ...]:
        images = observation.images
        if len(images) > self._limits.max_images:
            raise InvalidRequestError(
                "observation.images", f"{len(images)} frames came, expected at most {self._limits.max_images}"
            )
        for name in body.cameras:
            if name not in images:
                raise InvalidRequestError(
                    f"observation.images[{name}]", f"none came, the cameras are {_listed(body.cameras)}"
                )
        if len(images) > len(body.cameras):
            name = next(name for name in images if name not in body.cameras)
            raise InvalidRequestError(
                f"observation.images[{quoted(name)[1:-1]}]",
                f"an unknown camera came, the cameras are {_listed(body.cameras)}; "
                f"the nearest name is {nearest_name(name, body.cameras)!r}",
            )
        return tuple(
            inspect_image(images[name], field=f"observation.images[{name}]", limits=self._limits)
            for name in body.cameras
        )

    def _history(self, request: policy_pb2.PredictChunkRequest, body: _Body) -> tuple[np.ndarray, np.ndarray]:
        history = request.history
        states = self._history_rows(history, "states", body.state_dim)
        actions = self._history_rows(history, "actions", body.action_dim)
        if len(states) != len(actions):
            raise InvalidRequestError(
                "history.actions",
                f"{len(actions)} steps came, expected as many as history.states has, which is {len(states)}",
            )
        num_steps = len(states)
        num_valid = history.num_valid_steps if history.HasField("num_valid_steps") else num_steps
        if not 0 <= num_valid <= num_steps:
            raise InvalidRequestError(
                "history.num_valid_steps", f"{num_valid} came, expected 0 to {num_steps}, the number of steps"
            )
        states, actions = states[num_steps - num_valid :], actions[num_steps - num_valid :]
        require_plausible(states, field="history.states", most=self._limits.max_abs_value)
        require_plausible(actions, field="history.actions", most=self._limits.max_abs_value)
        return states, actions

    def _history_rows(self, history: policy_pb2.History, part: str, dim: int) -> np.ndarray:
        """float32 [num_steps, dim], num_steps at most the window's."""
        if not history.HasField(part):
            return np.zeros((0, dim), np.float32)
        field, most = f"history.{part}", self._description.history_steps
        rows = decode_tensor(getattr(history, part), field=field, dtype=np.float32, shape=(None, dim))
        if len(rows) > most:
            raise InvalidRequestError(field, f"{len(rows)} steps came, expected at most {most}")
        return rows

    def _num_inference_steps(self, request: policy_pb2.PredictChunkRequest) -> int:
        if not request.HasField("num_inference_steps"):
            return self._description.num_inference_steps
        most = self._description.max_inference_steps
        if not 1 <= request.num_inference_steps <= most:
            raise InvalidRequestError(
                "num_inference_steps", f"{request.num_inference_steps} came, expected 1 to {most}"
            )
        return request.num_inference_steps


def check_ids(request: policy_pb2.PredictChunkRequest, limits: GatewayLimits) -> None:
    """Raises InvalidRequestError when an id is missing or too long, also that of the episode's revision."""
    for field, least in (("robot_id", 1), ("episode_id", 1), ("request_id", 1), ("episode_revision", 0)):
        num_bytes = len(getattr(request, field).encode())
        if not least <= num_bytes <= limits.max_id_bytes:
            raise InvalidRequestError(field, f"{num_bytes} bytes came, expected {least} to {limits.max_id_bytes}")


def _seed(request: policy_pb2.PredictChunkRequest) -> int | None:
    if not request.HasField("seed"):
        return None
    if request.seed < 0:
        raise InvalidRequestError("seed", f"{request.seed} came, expected 0 to {MAX_SEED}")
    return request.seed


def _num_underruns(request: policy_pb2.PredictChunkRequest) -> int:
    if not 0 <= request.num_underruns <= MAX_UNDERRUNS:
        raise InvalidRequestError("num_underruns", f"{request.num_underruns} came, expected 0 to {MAX_UNDERRUNS}")
    return request.num_underruns


def _listed(names: tuple[str, ...] | dict[str, _Body]) -> str:
    return ", ".join(repr(name) for name in names)
