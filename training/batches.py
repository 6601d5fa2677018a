"""From memory-mapped packs to the tensors a stage reads: normalised as in serving, padded to the model's widths."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy.backbone import ObservationBatch
from policy.config import ModelConfig
from policy.normalization import Normalizer
from policy.vla import HistoryBatch
from training.data.pack import Pack
from training.data.windows import Windows, gather_windows
from training.objective import Landmarks, MotionBatch, VLABatch


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Packs of any embodiments, with what it takes to bring each to model units.

    `embodiments` gives each embodiment's index in the model; every pack's must be there.
    """

    packs: Sequence[Pack]
    normalizers: Mapping[str, Normalizer]
    embodiments: Mapping[str, int]
    config: ModelConfig
    landmark_scales: Sequence[tuple[np.ndarray, np.ndarray]] = ()  # mean and std per pack

    @property
    def max_landmarks(self) -> int:
        return max(len(mean) for mean, _ in self.landmark_scales)

    def motion(self, picks: Sequence[tuple[int, np.ndarray]]) -> MotionBatch:
        return self._motion([(index, self._windows(index, frames, history_steps=0)) for index, frames in picks])

    def vla(
        self,
        picks: Sequence[tuple[int, np.ndarray]],
        state_mask: Tensor,
        *,
        history: bool = True,
        shifts: Tensor | None = None,
    ) -> VLABatch:
        """`picks` are (pack, frames); `state_mask` [batch] hides the state of the samples where it is False.

        `shifts` int64 [batch, max_cameras, 2] moves each picture by (rows, columns); None leaves them alone.
        """
        history_steps = self.config.history_steps if history else 0
        parts = [(index, self._windows(index, frames, history_steps=history_steps)) for index, frames in picks]
        histories = [self._history(index, windows) for index, windows in parts] if history else []
        return VLABatch(
            observation=self._observation(parts, state_mask, shifts),
            history=_cat_history(histories) if histories else None,
            motion=self._motion(parts),
            landmarks=self._landmarks(parts) if self.landmark_scales else None,
        )

    def _windows(self, index: int, frames: np.ndarray, *, history_steps: int) -> Windows:
        return gather_windows(
            self.packs[index], frames, horizon=self.config.action_horizon, history_steps=history_steps
        )

    def _motion(self, parts: Sequence[tuple[int, Windows]]) -> MotionBatch:
        """Written straight into the whole batch: stage 1 reads far more windows than a padded copy of each allows."""
        config = self.config
        total = sum(len(windows.frames) for _, windows in parts)
        states = torch.zeros(total, config.action_horizon, config.max_state_dim)
        actions = torch.zeros(total, config.action_horizon, config.max_action_dim)
        action_mask = torch.zeros(total, config.max_action_dim, dtype=torch.bool)
        embodiment = torch.empty(total, dtype=torch.int64)
        start = 0
        for index, windows in parts:
            spec = self.packs[index].spec
            normalizer = self.normalizers[spec.name]
            recorded = torch.from_numpy(windows.states)
            rows = slice(start, start + len(windows.frames))
            states[rows, :, : spec.state_dim] = normalizer.normalize_state(recorded)
            actions[rows, :, : spec.action_dim] = normalizer.normalize_action(
                torch.from_numpy(windows.actions), recorded[:, 0]
            )
            action_mask[rows, : spec.action_dim] = True
            embodiment[rows] = self.embodiments[spec.name]
            start = rows.stop
        return MotionBatch(
            states=states,
            actions=actions,
            step_mask=torch.cat([torch.from_numpy(windows.chunk_mask) for _, windows in parts]),
            action_mask=action_mask,
            embodiment=embodiment,
        )

    def _history(self, index: int, windows: Windows) -> HistoryBatch:
        normalizer = self.normalizers[self.packs[index].spec.name]
        states, actions = torch.from_numpy(windows.history_states), torch.from_numpy(windows.history_actions)
        now = torch.from_numpy(windows.states[:, 0])
        return HistoryBatch(
            states=self._pad(normalizer.normalize_state(states), self.config.max_state_dim),
            actions=self._pad(normalizer.normalize_action(actions, now), self.config.max_action_dim),
            step_mask=torch.from_numpy(windows.history_mask),
        )

    def _observation(
        self, parts: Sequence[tuple[int, Windows]], state_mask: Tensor, shifts: Tensor | None
    ) -> ObservationBatch:
        config = self.config
        total = sum(len(windows.frames) for _, windows in parts)
        images = torch.zeros(total, config.max_cameras, config.image_size, config.image_size, 3, dtype=torch.uint8)
        camera_mask = torch.zeros(total, config.max_cameras, dtype=torch.bool)
        states, instructions, embodiment, start = [], [], [], 0
        for index, windows in parts:
            pack, frames = self.packs[index], windows.frames
            rows = slice(start, start + len(frames))
            for camera, name in enumerate(pack.spec.camera_names):
                images[rows, camera] = torch.from_numpy(np.take(np.asarray(pack.images[name]), frames, axis=0))
                camera_mask[rows, camera] = True
            now = self.normalizers[pack.spec.name].normalize_state(torch.from_numpy(windows.states[:, 0]))
            states.append(self._pad(now, config.max_state_dim))
            instructions += pack.instructions_of(frames)
            embodiment += [self.embodiments[pack.spec.name]] * len(frames)
            start = rows.stop
        return ObservationBatch(
            images=images if shifts is None else shift_images(images, shifts),
            camera_mask=camera_mask,
            state=torch.cat(states),
            state_mask=state_mask,
            instructions=tuple(instructions),
            embodiment=torch.tensor(embodiment),
        )

    def _landmarks(self, parts: Sequence[tuple[int, Windows]]) -> Landmarks:
        total = sum(len(windows.frames) for _, windows in parts)
        values, mask = torch.zeros(total, self.max_landmarks), torch.zeros(total, self.max_landmarks, dtype=torch.bool)
        task, start = [], 0
        for index, windows in parts:
            frames, positions = windows.frames, self.packs[index].environment_state
            if positions is None:
                raise ValueError(
                    f"pack {self.packs[index].directory} has no environment_state; set landmark_weight to 0"
                )
            mean, std = self.landmark_scales[index]
            scaled = torch.from_numpy(((positions[frames] - mean) / std).astype(np.float32))
            values[start : start + len(frames), : scaled.shape[1]] = scaled
            mask[start : start + len(frames), : scaled.shape[1]] = True
            task += [index] * len(frames)
            start += len(frames)
        return Landmarks(values=values, mask=mask, task=torch.tensor(task))

    @staticmethod
    def _pad(values: Tensor, dim: int) -> Tensor:
        return torch.nn.functional.pad(values, (0, dim - values.shape[-1]))


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Pictures [batch, cameras, height, width, channels] moved by `shifts` [batch, cameras, 2], edges repeated."""
    height, width = images.shape[2:4]
    rows = (torch.arange(height) - shifts[..., :1]).clamp(0, height - 1)
    columns = (torch.arange(width) - shifts[..., 1:]).clamp(0, width - 1)
    moved = torch.empty_like(images)
    for at in itertools.product(range(images.shape[0]), range(images.shape[1])):
        moved[at] = images[at].index_select(0, rows[at]).index_select(1, columns[at])
    return moved


def landmark_scales(packs: Sequence[Pack]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of every landmark coordinate, per pack; one that never moves gets 1."""
    scales = []
    for pack in packs:
        if pack.environment_state is None:
            raise ValueError(f"pack {pack.directory} has no environment_state; set landmark_weight to 0")
        positions = np.asarray(pack.environment_state, dtype=np.float64)
        std = positions.std(0)
        scales.append((positions.mean(0), np.where(std < 1e-4, 1.0, std)))
    return scales


def _cat_history(parts: Sequence[HistoryBatch]) -> HistoryBatch:
    return HistoryBatch(
        states=torch.cat([part.states for part in parts]),
        actions=torch.cat([part.actions for part in parts]),
        step_mask=torch.cat([part.step_mask for part in parts]),
    )
