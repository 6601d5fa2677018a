"""The transformer that motion encoder, action decoder and convolutional backbone share.

Shaped and named as Qwen3's decoder layers (RMSNorm, grouped queries with normed heads, rotary positions, SwiGLU), so
that Qwen3-0.6B weights load into it (paper A's initialisation). Adds what Qwen3 lacks: any attention mask, and an
optional condition that scales, shifts and gates every layer and starts as no change. No embeddings, no cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from policy.bounds import check_whole

_EVERY_TOKEN = slice(None)


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_width"):
            check_whole(f"trunk.{name}", getattr(self, name), 1)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions pair its dimensions")


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


class Attention(nn.Module):
    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.num_heads != config.num_kv_heads
        self.q_proj = nn.Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon)
        self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, wanted: slice = _EVERY_TOKEN
    ) -> Tensor:
        """The tokens that are `wanted`, each of which reads all."""
        asking = x[:, wanted]
        q = self.q_norm(self._heads(self.q_proj(asking))).transpose(1, 2)  # B heads T head_dim
        k = self.k_norm(self._heads(self.k_proj(x))).transpose(1, 2)
        v = self._heads(self.v_proj(x)).transpose(1, 2)
        cos, sin = rotation
        q, k = _rotate(q, (cos[:, :, wanted], sin[:, :, wanted])), _rotate(k, rotation)
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, wanted]
        mixed = self._attend(q, k, v, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(*asking.shape[:2], -1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.device.type != "cpu" or not torch.is_grad_enabled():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.grouped)
        # The fused kernel's backward on a CPU takes 20 times its forward at these lengths; plain products do not.
        if self.grouped:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1).to(v.dtype) @ v


class GatedMLP(nn.Module):
    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: TrunkConfig, condition_width: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(config)
        self.modulation: nn.Linear | None = None
        if condition_width:
            self.modulation = nn.Linear(condition_width, 6 * config.width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        condition: Tensor | None,
        second: Tensor | None,
        wanted: slice = _EVERY_TOKEN,
    ) -> Tensor:
        """The tokens that are `wanted`: all are read, and what the others would become is not computed."""
        if self.modulation is None or condition is None:
            x = x[:, wanted] + self.self_attn(self.input_layernorm(x), rotation, mask, wanted)
            return x + self.mlp(self.post_attention_layernorm(x))
        modulation = self.modulation(condition)
        if second is None:
            modulation = modulation[:, None]
        else:
            modulation = torch.where(second[:, :, None], modulation[:, 1:], modulation[:, :1])
        scale, shift = modulation.chunk(6, -1)[:2]
        normed = self.input_layernorm(x) * (1 + scale) + shift
        if second is not None:
            modulation = modulation[:, wanted]
        gate, mlp_scale, mlp_shift, mlp_gate = modulation.chunk(6, -1)[2:]
        x = x[:, wanted] + (1 + gate) * self.self_attn(normed, rotation, mask, wanted)
        normed = self.post_attention_layernorm(x) * (1 + mlp_scale) + mlp_shift
        return x + (1 + mlp_gate) * self.mlp(normed)


class Trunk(nn.Module):
    """A stack of blocks and a final norm. With `condition_width` 0 and a causal mask it is Qwen3 without embeddings."""

    def __init__(self, config: TrunkConfig, condition_width: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, condition_width) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "#batch #length length"] | None = None,
        condition: Float[Tensor, "batch condition_width"] | Float[Tensor, "batch 2 condition_width"] | None = None,
        positions: Int[Tensor, "#batch length"] | None = None,
        second: Bool[Tensor, "batch length"] | None = None,
        wanted: slice = _EVERY_TOKEN,
    ) -> Float[Tensor, "batch wanted width"]:
        """`mask[b, i, j]` says that token i may read token j; none means that every token reads every token.

        The outputs are those of the tokens that are `wanted`; the last layer computes no others.

        With `second` a condition is two vectors a sample, of which the tokens that it marks take the second. (One for
        each token made a whole `tiny` chunk 20 % slower.)
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        rotation = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        rotation = (rotation[0].to(x.dtype), rotation[1].to(x.dtype))
        attention_mask = None if mask is None else mask[:, None]
        for layer in self.layers[:-1]:
            x = layer(x, rotation, attention_mask, condition, second)
        return self.norm(self.layers[-1](x, rotation, attention_mask, condition, second, wanted))


def causal_mask(length: int, device: torch.device | None = None) -> Bool[Tensor, "1 length length"]:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None]


def rotary_angles(positions: Int[Tensor, "batch length"], head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [batch, 1, length, head_dim], in Qwen3's half-split layout."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
