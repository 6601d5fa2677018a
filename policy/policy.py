"""A policy as its callers see it: observations in physical units in, action chunks in physical units out.

transforms -> model -> transforms, the same objects in training and serving. A chunk is a function of its own request
and the weights: what else is in the batch changes it only by floating-point rounding. Keeps no state between calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from policy.backbone import ObservationBatch
from policy.checkpoint import CheckpointError, Probe, load_probe, read_checkpoint
from policy.config import ModelConfig
from policy.embodiment import EmbodimentSpec
from policy.images import resize_frames
from policy.models import Model
from policy.normalization import Normalizer, Statistics
from policy.real_time import Continuation, Guidance, Prefix, soft_mask
from policy.request import ChunkRequest, Method, RealTimeChunking
from policy.vla import HistoryBatch

Dtype = Literal["fp32", "bf16"]

# How far the probe may be off, per unit of action: other processors round differently, a wrong model is far outside.
PROBE_TOLERANCE: Mapping[Dtype, float] = {"fp32": 1e-3, "bf16": 0.15}


class InvalidObservationError(ValueError):
    """A request does not fit the policy; the message names the field, what came and what was expected."""


class Policy:
    """Weights, specs and statistics, ready to answer. Build it with `from_checkpoint`."""

    def __init__(
        self,
        *,
        vla: Model,
        specs: Sequence[EmbodimentSpec],
        statistics: Sequence[Statistics],
        manifest: Mapping[str, Any],
        revision: str,
        device: str | torch.device = "cpu",
        dtype: Dtype = "fp32",
    ) -> None:
        if dtype not in ("fp32", "bf16"):
            raise ValueError(f"dtype is {dtype!r}, expected 'fp32' or 'bf16'")
        self.config: ModelConfig = vla.config
        self.embodiments: dict[str, EmbodimentSpec] = {spec.name: spec for spec in specs}
        self.manifest = manifest
        self.revision = revision
        self.device = torch.device(device)
        self.dtype: Dtype = dtype
        self._vla = vla.to(self.device).eval().requires_grad_(False)
        self._index = {spec.name: index for index, spec in enumerate(specs)}
        self._normalizers = {
            spec.name: Normalizer(spec, values) for spec, values in zip(specs, statistics, strict=True)
        }
        self._limits = {spec.name: _limits(spec) for spec in specs}

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: Dtype = "fp32",
        verify_probe: bool = True,
    ) -> Policy:
        """Raises CheckpointError that says which file is missing, changed or unusable, or how far the probe is off."""
        parts = read_checkpoint(Path(directory))
        try:
            policy = cls(
                vla=parts.vla,
                specs=parts.specs,
                statistics=parts.statistics,
                manifest=parts.manifest,
                revision=parts.revision,
                device=device,
                dtype=dtype,
            )
        except ValueError as error:
            raise CheckpointError(f"embodiments.json: {error}") from None
        if verify_probe:
            policy.check_probe(load_probe(Path(directory)))
        return policy

    def check_probe(self, probe: Probe) -> None:
        """Raises CheckpointError when recorded observations no longer give their recorded chunks."""
        try:
            chunks = self.predict_chunk([request for request, _ in probe])
        except ValueError as error:
            raise CheckpointError(f"probe.npz: {error}") from None
        tolerance = PROBE_TOLERANCE[self.dtype]
        for (request, expected), chunk in zip(probe, chunks, strict=True):
            if chunk.shape != expected.shape:
                raise CheckpointError(
                    f"probe.npz: the chunk of embodiment {request.embodiment!r} is {tuple(expected.shape)}, "
                    f"the policy gives {tuple(chunk.shape)}"
                )
            worst = float(((chunk.cpu() - expected).abs() / (1 + expected.abs())).max())
            if not worst <= tolerance:
                raise CheckpointError(
                    f"probe.npz: the chunk of embodiment {request.embodiment!r} is off by {worst:.3g}, "
                    f"expected at most {tolerance}"
                )

    def predict_chunk(self, batch: Sequence[ChunkRequest]) -> list[Tensor]:
        """One float32 [action_horizon, action_dim] per request, on the policy's device, in the embodiment's units.

        Raises as `check` does, for the first request that it refuses.
        """
        if not batch:
            return []
        for request in batch:
            self.check(request)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            normalized = self._vla.sample(
                self._observe(batch),
                self._history(batch),
                self._noise(batch),
                self._action_mask(batch),
                [request.num_inference_steps or self.config.num_inference_steps for request in batch],
                self._continuations(batch),
            )
            return [self._to_actions(request, chunk.float()) for request, chunk in zip(batch, normalized, strict=True)]

    def check(self, request: ChunkRequest) -> None:
        """Raises InvalidObservationError or InstructionTooLongError for a request that does not fit."""
        spec = self.embodiments.get(request.embodiment)
        if spec is None:
            raise InvalidObservationError(
                f"embodiment is {request.embodiment!r}, expected one of {sorted(self.embodiments)}"
            )
        if set(request.images) != set(spec.camera_names):
            raise InvalidObservationError(f"images are {sorted(request.images)}, expected {sorted(spec.camera_names)}")
        for name in spec.camera_names:
            _check_frame(name, request.images[name])
        _check_vector("state", request.state, (spec.state_dim,))
        if not request.instruction.strip():
            raise InvalidObservationError("instruction is blank, expected what to do in plain language")
        self._vla.backbone.instructions.tokens(request.instruction)
        if (request.history_states is None) != (request.history_actions is None):
            raise InvalidObservationError("history_states and history_actions must come together")
        if request.history_states is not None and request.history_actions is not None:
            steps = _num_rows("history_states", request.history_states)
            if steps > self.config.history_steps:
                raise InvalidObservationError(
                    f"history has {steps} steps, expected at most {self.config.history_steps}"
                )
            _check_vector("history_states", request.history_states, (steps, spec.state_dim))
            _check_vector("history_actions", request.history_actions, (steps, spec.action_dim))
        steps = request.num_inference_steps
        if steps is not None and not 1 <= steps <= self.config.max_inference_steps:
            raise InvalidObservationError(
                f"num_inference_steps is {steps}, expected 1 to {self.config.max_inference_steps}"
            )
        if not 0 <= request.seed < 2**63:
            raise InvalidObservationError(f"seed is {request.seed}, expected 0 to 2**63 - 1")
        if request.real_time_chunking is not None:
            self._check_chunking(request.real_time_chunking, spec.action_dim)

    def _to_actions(self, request: ChunkRequest, normalized: Tensor) -> Tensor:
        spec = self.embodiments[request.embodiment]
        actions = self._normalizers[spec.name].unnormalize_action(
            normalized[:, : spec.action_dim].cpu(), request.state.cpu().float()
        )
        low, high = self._limits[spec.name]
        return actions.clamp(low, high).to(self.device)

    def _observe(self, batch: Sequence[ChunkRequest]) -> ObservationBatch:
        config = self.config
        size = config.image_size
        images = torch.zeros(len(batch), config.max_cameras, size, size, 3, dtype=torch.uint8)
        camera_mask = torch.zeros(len(batch), config.max_cameras, dtype=torch.bool)
        state = torch.zeros(len(batch), config.max_state_dim)
        for row, request in enumerate(batch):
            spec = self.embodiments[request.embodiment]
            for camera, name in enumerate(spec.camera_names):
                frame = request.images[name][None]
                images[row, camera] = resize_frames(frame, size, config.interpolation)[0]
                camera_mask[row, camera] = True
            state[row, : spec.state_dim] = self._normalizers[spec.name].normalize_state(request.state.cpu().float())
        return ObservationBatch(
            images=images.to(self.device),
            camera_mask=camera_mask.to(self.device),
            state=state.to(self.device),
            state_mask=torch.ones(len(batch), dtype=torch.bool, device=self.device),
            instructions=tuple(request.instruction for request in batch),
            embodiment=torch.tensor([self._index[request.embodiment] for request in batch], device=self.device),
        )

    def _history(self, batch: Sequence[ChunkRequest]) -> HistoryBatch | None:
        lengths = [0 if request.history_states is None else len(request.history_states) for request in batch]
        if not any(lengths):
            return None
        config = self.config
        states = torch.zeros(len(batch), config.history_steps, config.max_state_dim)
        actions = torch.zeros(len(batch), config.history_steps, config.max_action_dim)
        mask = torch.zeros(len(batch), config.history_steps, dtype=torch.bool)
        for row, (request, length) in enumerate(zip(batch, lengths, strict=True)):
            if not length or request.history_states is None or request.history_actions is None:
                continue
            spec, normalizer = self.embodiments[request.embodiment], self._normalizers[request.embodiment]
            past = normalizer.normalize_state(request.history_states.cpu().float())
            commands = normalizer.normalize_action(request.history_actions.cpu().float(), request.state.cpu().float())
            states[row, -length:, : spec.state_dim] = past
            actions[row, -length:, : spec.action_dim] = commands
            mask[row, -length:] = True
        return HistoryBatch(
            states=states.to(self.device), actions=actions.to(self.device), step_mask=mask.to(self.device)
        )

    def _continuations(self, batch: Sequence[ChunkRequest]) -> list[Continuation]:
        """Who continues a previous chunk, by method; one whose previous chunk binds nothing is left out."""
        asking = [
            (row, request.real_time_chunking)
            for row, request in enumerate(batch)
            if request.real_time_chunking is not None
        ]
        guided = [
            (row, chunking, mask)
            for row, chunking in asking
            if chunking.method == "guidance" and (mask := self._soft_mask(chunking)).any()
        ]
        prefixed = [
            (row, chunking) for row, chunking in asking if chunking.method == "prefix" and chunking.inference_delay
        ]
        continuations: list[Continuation] = []
        if guided:
            rows, chosen, masks = zip(*guided, strict=True)
            continuations.append(
                Guidance(
                    rows=rows,
                    previous=self._previous(batch, rows),
                    weights=torch.stack(masks).to(self.device),
                    max_weight=torch.tensor([chunking.max_guidance_weight for chunking in chosen]).to(self.device),
                )
            )
        if prefixed:
            rows, chosen = zip(*prefixed, strict=True)
            delays = torch.tensor([chunking.inference_delay for chunking in chosen])
            mask = torch.arange(self.config.action_horizon) < delays[:, None]
            continuations.append(Prefix(rows=rows, previous=self._previous(batch, rows), mask=mask.to(self.device)))
        return continuations

    def _soft_mask(self, chunking: RealTimeChunking) -> Tensor:
        return soft_mask(
            action_horizon=self.config.action_horizon,
            inference_delay=chunking.inference_delay,
            execution_horizon=chunking.execution_horizon,
            num_previous=len(chunking.previous_actions),
        )

    def _previous(self, batch: Sequence[ChunkRequest], rows: Sequence[int]) -> Tensor:
        """Previous chunks in model units, as training sees actions: relative groups to this observation's state."""
        previous = torch.zeros(len(rows), self.config.action_horizon, self.config.max_action_dim)
        for own, request in enumerate(batch[row] for row in rows):
            assert request.real_time_chunking is not None
            actions = request.real_time_chunking.previous_actions.cpu().float()
            normalized = self._normalizers[request.embodiment].normalize_action(actions, request.state.cpu().float())
            previous[own, : len(actions), : actions.shape[1]] = normalized
        return previous.to(self.device)

    def _noise(self, batch: Sequence[ChunkRequest]) -> Tensor:
        shape = (self.config.action_horizon, self.config.max_action_dim)
        # Drawn on the CPU whatever the device, so that a seed means the same noise everywhere.
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)) for request in batch]
        return torch.stack(draws).to(self.device)

    def _action_mask(self, batch: Sequence[ChunkRequest]) -> Tensor:
        dims = torch.tensor([self.embodiments[request.embodiment].action_dim for request in batch])
        return (torch.arange(self.config.max_action_dim) < dims[:, None]).to(self.device)

    def _check_chunking(self, chunking: RealTimeChunking, action_dim: int) -> None:
        if chunking.method not in get_args(Method):
            raise InvalidObservationError(f"method is {chunking.method!r}, expected one of {list(get_args(Method))}")
        horizon = self.config.action_horizon
        num_previous = _num_rows("previous_actions", chunking.previous_actions)
        _check_vector("previous_actions", chunking.previous_actions, (num_previous, action_dim))
        longest = self.config.max_inference_delay if chunking.method == "prefix" else horizon - 1
        if chunking.method == "prefix" and not longest:
            raise InvalidObservationError("method is 'prefix', which this checkpoint was not trained for")
        for name, value, least, most in (
            ("previous_actions' number", num_previous, 1, horizon),
            ("inference_delay", chunking.inference_delay, 0, min(num_previous, longest)),
            ("execution_horizon", chunking.execution_horizon, 1, horizon),
        ):
            if not least <= value <= most:
                raise InvalidObservationError(f"{name} is {value}, expected {least} to {most}")
        if not 0 < chunking.max_guidance_weight < math.inf:
            raise InvalidObservationError(
                f"max_guidance_weight is {chunking.max_guidance_weight}, expected a finite number, more than 0"
            )


def _check_frame(camera: str, frame: Tensor) -> None:
    if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or not frame.numel():
        raise InvalidObservationError(
            f"image {camera!r} is {frame.dtype} {tuple(frame.shape)}, expected uint8 [height, width, 3]"
        )


def _num_rows(name: str, values: Tensor) -> int:
    if values.ndim != 2:
        raise InvalidObservationError(f"{name} has shape {tuple(values.shape)}, expected a row a step")
    return len(values)


def _check_vector(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise InvalidObservationError(f"{name} has shape {tuple(values.shape)}, expected {shape}")
    if not torch.isfinite(values).all():
        raise InvalidObservationError(f"{name} holds a value that is not finite")


def _limits(spec: EmbodimentSpec) -> tuple[Tensor, Tensor]:
    """Commands saturate at the declared limits, as the training labels did; unlimited groups are left alone."""
    low, high = [], []
    for group in spec.action:
        low += list(group.lower_limit or [-torch.inf] * group.dim)
        high += list(group.upper_limit or [torch.inf] * group.dim)
    return torch.tensor(low), torch.tensor(high)
