"""A Hugging Face image-text-to-text model as the backbone: it reads `[p_k, images, text, state, (z_hist), query]`.

Owns the sequence, its attention and positions, and the embeddings that are no words. What differs between families of
models is in vlm_families.py, what a directory must hold in vlm_directory.py. Loads from local directories and
safetensors alone; runs no code that comes with a model.

With history one pass answers twice: the sequence is `[prefix, query, history, query]`, in which history and the second
query cannot read the first query and take the positions they would have without it.
"""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from policy.backbone import Backbone, BackboneOutput, ObservationBatch
from policy.config import ModelConfig, VlmSettings
from policy.instructions import InstructionReader
from policy.prior import EmbodimentLinear
from policy.vlm_directory import check_weights
from policy.vlm_families import family_of, placeholders_per_side
from policy.vocabulary import HISTORY, QUERY, RESERVED, SOFT, STATE

# What the embedding hook puts in place of the reserved tokens during one forward; per thread, so that several may share
# a model.
_INJECTED: ContextVar[Tensor | None] = ContextVar("injected", default=None)


class VlmBackbone(Backbone):
    """Fresh weights until load_pretrained. Raises ValueError for a family, image size or tokenizer that cannot work."""

    pixel_mean: Tensor
    pixel_std: Tensor
    reserved: Tensor

    def __init__(self, config: ModelConfig, settings: VlmSettings, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.family = family_of(settings.hugging_face)
        self.tokenizer = tokenizer
        self.instructions = InstructionReader(tokenizer)
        model = _build(settings)
        self.vlm: PreTrainedModel = model.model
        self.image_side = placeholders_per_side(self.family, model.config, config.image_size)
        self.image_token = int(model.config.image_token_id)
        self.width = int(model.config.get_text_config().hidden_size)
        _check_vocabulary(tokenizer, int(model.config.get_text_config().vocab_size))

        self.soft_tokens = nn.Parameter(torch.empty(config.num_embodiments, config.num_soft_tokens, self.width))
        self.state_in = EmbodimentLinear(config.num_embodiments, config.max_state_dim, self.width)
        self.no_state = nn.Parameter(torch.empty(self.width))
        self.history_in = nn.Linear(config.latent_dim, self.width)
        self.query = nn.Parameter(torch.empty(self.width))
        self._initialize_tokens()
        mean_std = (settings.image_mean or self.family.mean_std[0], settings.image_std or self.family.mean_std[1])
        mean, std = torch.tensor(mean_std).view(2, 3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        reserved = torch.tensor([_token(tokenizer, name) for name in RESERVED])
        self.register_buffer("reserved", reserved, persistent=False)
        self._embedding().register_forward_hook(self._inject)

    def forward(
        self, observation: ObservationBatch, history: Float[Tensor, "batch latent_dim"] | None = None
    ) -> BackboneOutput:
        ids, readable = self._sequence(observation, with_history=history is not None)
        suffix = 1 if history is None else 3
        token = _INJECTED.set(self._reserved_embeddings(observation, history))
        try:
            h = self.vlm(
                input_ids=ids,
                attention_mask=self._mask(readable, suffix),
                position_ids=self._positions(ids, readable, suffix),
                use_cache=False,
                **self._pixels(observation),
            ).last_hidden_state
        finally:
            _INJECTED.reset(token)
        if history is None:
            return BackboneOutput(without_history=h[:, -1], with_history=None)
        return BackboneOutput(without_history=h[:, -3], with_history=h[:, -1])

    def save_tokenizer(self, directory: str) -> None:
        self.tokenizer.save(str(Path(directory) / "tokenizer.json"))

    def load_pretrained(self, directory: str | Path) -> None:
        """Weights of the model saved in `directory`, from whose read_directory this backbone was built.

        Starts the tokens that are no words anew, at the scale of the model's word embeddings. Draws from torch's
        default generator. Raises OSError for a missing file, ValueError when the weights are not all of the model's.
        """
        check_weights(Path(directory))
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, report = loaded
        # Hugging Face would start what is missing at random. Of its head for words nothing is asked here.
        if missing := sorted(name for name in report["missing_keys"] if name.startswith("model.")):
            raise ValueError(
                f"{directory} lacks {len(missing)} weights of its {self.vlm.config.model_type}, {missing[0]} first; "
                "save the whole model there again"
            )
        vocabulary = self._embedding().num_embeddings
        if model.get_input_embeddings().num_embeddings != vocabulary:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        self.vlm.load_state_dict(model.model.state_dict())
        self._initialize_tokens()

    @torch.no_grad()
    def _initialize_tokens(self) -> None:
        """Draws from torch's default generator."""
        embedding = self._embedding()
        some = torch.arange(1, min(embedding.num_embeddings, 256), device=embedding.weight.device)
        scale = float(embedding(some).float().std())
        for token in (self.soft_tokens, self.no_state, self.query):
            nn.init.normal_(token, std=scale)
        nn.init.normal_(self.state_in.weight, std=scale * self.state_in.weight.shape[1] ** -0.5)
        nn.init.normal_(self.history_in.weight, std=scale * self.history_in.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.history_in.bias)

    def _sequence(
        self, observation: ObservationBatch, *, with_history: bool
    ) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """Token ids, and which of them carry anything; texts are padded on the left: every part keeps its columns."""
        batch, cameras = observation.camera_mask.shape
        device = observation.camera_mask.device
        texts = [self.instructions.tokens(instruction) for instruction in observation.instructions]
        longest = max(len(text) for text in texts)
        image = [
            *self._tokens(self.family.before_image),
            *[self.image_token] * self.image_side**2,
            *self._tokens(self.family.after_image),
        ]
        before = self._tokens((SOFT,)) * self.soft_tokens.shape[1]
        after = self._tokens((STATE, QUERY, HISTORY, QUERY) if with_history else (STATE, QUERY))
        ids = torch.tensor(
            [[*before, *image * cameras, *[0] * (longest - len(text)), *text, *after] for text in texts]
        ).to(device, non_blocking=True)
        words = torch.tensor([[False] * (longest - len(text)) + [True] * len(text) for text in texts])
        readable = torch.cat(
            [
                observation.camera_mask.new_ones(batch, len(before)),
                observation.camera_mask.repeat_interleave(len(image), dim=1),
                words.view(batch, longest).to(device, torch.bool, non_blocking=True),
                observation.camera_mask.new_ones(batch, len(after)),
            ],
            1,
        )
        return ids, readable

    def _mask(self, readable: Bool[Tensor, "batch length"], suffix: int) -> Float[Tensor, "batch 1 length length"]:
        """Added to attention scores: 0 where a token may read another, the lowest number where it may not."""
        length = readable.shape[1]
        may_read = torch.ones(length, length, dtype=torch.bool, device=readable.device).tril()
        if self.family.prefix_reads_all:
            may_read[:-suffix, :-suffix] = True
        if suffix == 3:
            may_read[-2:, -3] = False
        # A token that carries nothing reads itself: an empty row of attention would be NaN.
        itself = torch.eye(length, dtype=torch.bool, device=readable.device)
        allowed = (may_read & readable[:, None]) | itself
        dtype = self.query.dtype
        blocked = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=readable.device)
        return torch.where(allowed, torch.zeros_like(blocked), blocked)[:, None]

    def _positions(
        self, ids: Int[Tensor, "batch length"], readable: Bool[Tensor, "batch length"], suffix: int
    ) -> Int[Tensor, "*axes batch length"]:
        """[batch, length], or [3, batch, length] with spatial positions; what carries nothing takes up no position."""
        step = readable.long()
        if suffix == 3:
            step[:, -3] = 0  # history and the second query stand where the first query stands
        if not self.family.spatial_positions:
            return step.cumsum(1) - step
        # An image takes up as many positions as its side is long, from which its tokens count rows and columns.
        side = self.image_side
        image = ids == self.image_token
        inside = (image.long().cumsum(1) - 1) % side**2
        step = torch.where(image, step * side * (inside == side**2 - 1), step)
        start = step.cumsum(1) - step
        row = torch.where(image, inside // side, 0)
        column = torch.where(image, inside % side, 0)
        return torch.stack([start, start + row, start + column])

    def _pixels(self, observation: ObservationBatch) -> dict[str, Tensor]:
        frames = observation.images.movedim(-1, -3).float() / 255
        frames = (frames - self.pixel_mean.float()) / self.pixel_std.float()
        return self.family.pixels(self.vlm.config, frames.to(self.query.dtype))

    def _reserved_embeddings(
        self, observation: ObservationBatch, history: Tensor | None
    ) -> Float[Tensor, "batch reserved width"]:
        """Embeddings of the reserved tokens in the order of the sequence."""
        dtype = self.query.dtype
        state = self.state_in(observation.state[:, None], observation.embodiment).to(dtype)
        state = torch.where(observation.state_mask[:, None, None], state, self.no_state)
        query = self.query.expand(len(state), 1, -1)
        parts = [self.soft_tokens[observation.embodiment], state, query]
        if history is not None:
            parts += [self.history_in(history.to(dtype))[:, None].to(dtype), query]
        return torch.cat(parts, 1)

    def _inject(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Embedding output hook: the n-th reserved token of a row gets that row's n-th embedding."""
        values = _INJECTED.get()
        if values is None:
            return output
        hit = torch.isin(args[0], self.reserved)
        index = (hit.long().cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, values.shape[-1])
        embeddings = torch.where(hit[..., None], values.to(output.dtype).gather(1, index), output)
        kind = output.device.type
        # SmolVLM merges image features into embeddings only when both have one dtype, and autocast casts the former.
        return embeddings.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else embeddings

    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.vlm.get_input_embeddings())

    def _tokens(self, names: tuple[str, ...]) -> list[int]:
        return [_token(self.tokenizer, name) for name in names]


def _build(settings: VlmSettings) -> Any:
    config = AutoConfig.for_model(**settings.hugging_face)
    # Attention takes a mask of our own: fused kernels that know only causal ones cannot, and "sdpa" drops soft caps.
    capped = config.get_text_config().to_dict().get("attn_logit_softcapping") is not None
    return AutoModelForImageTextToText.from_config(
        config, dtype=torch.float32, attn_implementation="eager" if capped else "sdpa", trust_remote_code=False
    )


def _token(tokenizer: Tokenizer, name: str) -> int:
    index = tokenizer.token_to_id(name)
    if index is None:
        raise ValueError(f"tokenizer lacks the token {name!r}")
    return index


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= vocab_size:
        raise ValueError(f"tokenizer has ids up to {highest}, the model's vocab_size is {vocab_size}")
