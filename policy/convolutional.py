"""The small backbone: a convolutional stem that reports where things are, a word embedding and the shared trunk.

Trained from nothing on little data, a toy vision transformer goes blind: state and task alone explain its loss.
This stem keeps position: coordinate channels in, and spatial softmax out, which gives each of its keypoints as image
coordinates with sub-cell precision (Levine et al., arXiv 1504.00702, section 5.1), beside a coarse grid of features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from policy.backbone import Backbone, BackboneOutput, ObservationBatch
from policy.config import CHANNEL_GROUPS
from policy.images import to_unit_range
from policy.instructions import InstructionReader
from policy.prior import EmbodimentLinear
from policy.trunk import Trunk, TrunkConfig

# Later tokens are read without their order: weights have no more positions.
_NUM_POSITIONS = 32


@dataclass(frozen=True, kw_only=True)
class ConvolutionalConfig:
    num_embodiments: int
    max_cameras: int
    max_state_dim: int
    latent_dim: int
    vocabulary: int
    num_soft_tokens: int
    num_keypoints: int
    channels: tuple[int, int, int, int]
    trunk: TrunkConfig


class Stem(nn.Module):
    """Pixels to keypoints (x, y, strength) and a 3 x 3 grid of features."""

    def __init__(self, channels: tuple[int, int, int, int], num_keypoints: int) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.fine = nn.Sequential(
            nn.Conv2d(5, first, 5, stride=2, padding=2),
            nn.GroupNorm(CHANNEL_GROUPS, first),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(CHANNEL_GROUPS, second),
            nn.SiLU(),
            nn.Conv2d(second, second, 3, padding=1),
            nn.GroupNorm(CHANNEL_GROUPS, second),
            nn.SiLU(),
        )
        self.context = nn.Sequential(
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.GroupNorm(CHANNEL_GROUPS, third),
            nn.SiLU(),
            nn.Conv2d(third, third, 3, padding=1),
            nn.GroupNorm(CHANNEL_GROUPS, third),
            nn.SiLU(),
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(third, fourth, 3, stride=2, padding=1),
            nn.GroupNorm(CHANNEL_GROUPS, fourth),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(3),
        )
        self.context_heat = nn.Conv2d(third, num_keypoints, 1)
        self.fine_heat = nn.Conv2d(second, num_keypoints, 1)
        self.grid_dim = fourth

    def forward(self, frames: Float[Tensor, "n 3 size size"]) -> tuple[Tensor, Tensor]:
        """Keypoints [n, num_keypoints, 3] and grid features [n, 9, grid_dim]."""
        fine = self.fine(torch.cat([frames, _coordinates(frames)], 1))
        context = self.context(fine)
        # What a thing is needs context, where it is needs resolution: the sum of both decides the peak.
        heat = self.fine_heat(fine) + F.interpolate(self.context_heat(context), fine.shape[-2:], mode="nearest")
        grid = self.coarse(context).flatten(2).transpose(1, 2)
        return spatial_softmax(heat), grid


def spatial_softmax(heat: Float[Tensor, "n keypoints height width"]) -> Float[Tensor, "n keypoints 3"]:
    """Expected x and y in [-1, 1] under the softmax of each map, and how peaked it is (its highest probability)."""
    height, width = heat.shape[-2:]
    probability = heat.float().flatten(2).softmax(-1)
    xs = torch.linspace(-1, 1, width, device=heat.device).repeat(height)
    ys = torch.linspace(-1, 1, height, device=heat.device).repeat_interleave(width)
    return torch.stack([probability @ xs, probability @ ys, probability.amax(-1)], -1)


class ConvolutionalBackbone(Backbone):
    def __init__(self, config: ConvolutionalConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        width = config.trunk.width
        self.width = width
        self.config = config
        self.tokenizer = tokenizer
        self.stem = Stem(config.channels, config.num_keypoints)
        self.keypoints_in = nn.Linear(3 * config.num_keypoints, 2 * width)
        self.grid_in = nn.Linear(self.stem.grid_dim, width)
        views = (config.num_embodiments, config.max_cameras)
        self.keypoint_view = nn.Parameter(torch.randn(*views, 2, width) * 0.02)
        self.grid_view = nn.Parameter(torch.randn(*views, 9, width) * 0.02)
        self.soft_tokens = nn.Parameter(torch.randn(config.num_embodiments, config.num_soft_tokens, width) * 0.02)
        self.words = nn.Embedding(config.vocabulary, width)
        self.word_position = nn.Parameter(torch.ones(_NUM_POSITIONS, width) + torch.randn(_NUM_POSITIONS, width) * 0.1)
        self.instruction_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.state_in = EmbodimentLinear(config.num_embodiments, config.max_state_dim, width)
        self.no_state = nn.Parameter(torch.randn(width) * 0.02)
        self.history_in = nn.Linear(config.latent_dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.trunk = Trunk(config.trunk)
        self.instructions = InstructionReader(tokenizer)

    def forward(
        self, observation: ObservationBatch, history: Float[Tensor, "batch latent_dim"] | None = None
    ) -> BackboneOutput:
        batch = len(observation.instructions)
        images, image_mask, visual = self._see(observation)
        state = self.state_in(observation.state[:, None], observation.embodiment)
        state = torch.where(observation.state_mask[:, None, None], state, self.no_state.to(state.dtype))
        tokens = [
            self.soft_tokens[observation.embodiment].to(state.dtype),
            images.to(state.dtype),
            self._read(observation.instructions)[:, None].to(state.dtype),
            state,
            self.query.to(state.dtype).expand(batch, 1, -1),
        ]
        if history is not None:
            tokens += [self.history_in(history)[:, None].to(state.dtype), tokens[-1]]
        x = torch.cat(tokens, 1)
        mask = self._mask(image_mask, x.shape[1], with_history=history is not None)
        h = self.trunk(x, mask, wanted=slice(-1 if history is None else -3, None))
        if history is None:
            return BackboneOutput(without_history=h[:, -1], with_history=None, visual=visual)
        return BackboneOutput(without_history=h[:, -3], with_history=h[:, -1], visual=visual)

    def save_tokenizer(self, directory: str) -> None:
        self.tokenizer.save(str(Path(directory) / "tokenizer.json"))

    def _see(self, observation: ObservationBatch) -> tuple[Tensor, Tensor, Tensor]:
        batch, cameras = observation.camera_mask.shape
        frames = to_unit_range(observation.images.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        keypoints, grid = self.stem(frames)
        keypoint_tokens = self.keypoints_in(keypoints.flatten(1)).view(batch, cameras, 2, self.width)
        keypoint_tokens = keypoint_tokens + self.keypoint_view[observation.embodiment, :cameras]
        grid_tokens = self.grid_in(grid).view(batch, cameras, 9, self.width)
        grid_tokens = grid_tokens + self.grid_view[observation.embodiment, :cameras]
        tokens = torch.cat([keypoint_tokens, grid_tokens], 2)  # B cameras 11 D
        visual = torch.where(observation.camera_mask[:, :, None], keypoints.flatten(1).view(batch, cameras, -1), 0)
        return tokens.flatten(1, 2), observation.camera_mask.repeat_interleave(11, dim=1), visual.flatten(1)

    def _read(self, instructions: tuple[str, ...]) -> Float[Tensor, "batch width"]:
        device = self.words.weight.device
        words = [self.instructions.tokens(instruction) or (0,) for instruction in instructions]
        longest = max(len(word) for word in words)
        ids = torch.tensor([[*word, *[0] * (longest - len(word))] for word in words], device=device)
        real = torch.tensor([[True] * len(word) + [False] * (longest - len(word)) for word in words], device=device)
        position = F.pad(self.word_position[:longest], (0, 0, 0, max(0, longest - _NUM_POSITIONS)), value=1.0)
        embedded = self.words(ids) * position
        mean = torch.where(real[..., None], embedded, 0).sum(1) / real.sum(1, keepdim=True)
        return self.instruction_in(mean)

    def _mask(
        self, image_mask: Bool[Tensor, "batch image_tokens"], length: int, *, with_history: bool
    ) -> Bool[Tensor, "batch length length"]:
        """The prefix reads itself, the first query the prefix too, z_hist and the second query also z_hist."""
        batch, num_image = image_mask.shape
        before, after = self.config.num_soft_tokens, length - self.config.num_soft_tokens - num_image
        readable = torch.cat([image_mask.new_ones(batch, before), image_mask, image_mask.new_ones(batch, after)], 1)
        mask = readable[:, None].repeat(1, length, 1)
        first_query = length - (3 if with_history else 1)
        mask[:, :, first_query:] = False
        mask[:, first_query, first_query] = True
        if with_history:
            mask[:, -2:, -2] = True
            mask[:, -1, -1] = True
        return mask


def _coordinates(frames: Tensor) -> Float[Tensor, "n 2 height width"]:
    height, width = frames.shape[-2:]
    ys = torch.linspace(-1, 1, height, device=frames.device, dtype=frames.dtype)
    xs = torch.linspace(-1, 1, width, device=frames.device, dtype=frames.dtype)
    grid = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)])
    return grid.expand(len(frames), -1, -1, -1)
