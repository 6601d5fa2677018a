"""A vision-language model in a local directory, as Hugging Face saves it: what must lie there and what it says.

Owns reading config.json, tokenizer.json and the image processor's config, and the check that weights are safetensors
and whole. Reads no weights (vlm.py does) and runs no code that comes with a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig

from policy.config import VlmSettings
from policy.images import Interpolation
from policy.vlm_families import Family, family_of
from policy.vocabulary import RESERVED

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
# What an image processor may say of pixels beyond mean and deviation, and what this code does.
_PIXELS = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_PIL_BILINEAR = 2


@dataclass(frozen=True, kw_only=True)
class VlmDirectory:
    """What a model's directory says, weights aside. The tokenizer has the reserved tokens."""

    path: Path
    settings: VlmSettings
    tokenizer: Tokenizer
    interpolation: Interpolation
    stride: int  # pixels; an image's side is a multiple of it
    sides: tuple[int, int] | None  # smallest and largest side of an image that the model was trained on; None: unknown

    def image_size(self, wanted: int) -> int:
        """The side nearest to `wanted` that the model was trained on."""
        low, high = self.sides or (wanted, wanted)
        size = min(max(wanted, low), high)
        if low == high:  # eyes of one size take a multiple of the stride by leaving its rest out
            return size // self.stride * self.stride
        return math.ceil(size / self.stride) * self.stride

    @cached_property
    def sha256(self) -> str:
        """Of config, words and weights: what makes it this model. Reads all of them."""
        return sha256_of([self.path / "config.json", self.path / "tokenizer.json", *check_weights(self.path)])


def read_directory(path: Path | str) -> VlmDirectory:
    """Raises OSError for what is missing, ValueError for what is not supported; either says what to do."""
    path = Path(path)
    if not path.is_dir():
        raise OSError(f"backbone directory {path} is not there; give one that Hugging Face's save_pretrained wrote")
    family = _family(path)
    tokenizer = _tokenizer(path)
    check_weights(path)
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= text.vocab_size:
        text.vocab_size = -(-(highest + 1) // 64) * 64
    processor = read_processor(path)
    return VlmDirectory(
        path=path,
        settings=VlmSettings(
            hugging_face=_without_origin(config.to_dict()),
            image_mean=_numbers(processor.get("image_mean")),
            image_std=_numbers(processor.get("image_std")),
        ),
        tokenizer=tokenizer,
        interpolation="bilinear" if processor.get("resample") == _PIL_BILINEAR else "bicubic",
        stride=family.stride(config),
        sides=_sides(family, config, processor),
    )


def sha256_of(paths: Sequence[Path]) -> str:
    """Of files' names and contents, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def check_weights(path: Path) -> list[Path]:
    """The files of weights in a directory. Raises OSError when they are missing, not safetensors, or not whole."""
    if (path / "adapter_config.json").is_file():
        raise OSError(f"{path} holds an adapter, not a model; merge it into its model and save that")
    index = path / _INDEX
    if index.is_file():
        names = _names_in(index)
        if missing := [name for name in names if not (path / name).is_file()]:
            raise OSError(
                f"{index} names {missing[0]}, which is not there ({len(missing)} of {len(names)} files "
                "are missing); copy them beside it"
            )
    elif (path / _WEIGHTS).is_file():
        names = [_WEIGHTS]
    else:
        raise OSError(_without_safetensors(path))
    for name in names:
        with (path / name).open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise OSError(f"{path / name} is a pointer of Git LFS, not weights; run `git lfs pull` in {path}")
        try:
            with safe_open(path / name, framework="pt"):  # reads the header alone, which says how long the file is
                pass
        except SafetensorError as error:
            raise OSError(f"{path / name} cannot be read: {error}; copy it there again") from None
    return [path / name for name in names]


def _names_in(index: Path) -> list[str]:
    """The files that an index of shards names."""
    table = read_object(index).get("weight_map")
    if not isinstance(table, Mapping) or not table:
        raise OSError(f"{index} has no weight_map; save the model there with save_pretrained")
    names = sorted({str(name) for name in table.values()})
    # A file is read as what its name says, and a pickle is run when it is read.
    if foreign := [name for name in names if not name.endswith(".safetensors") or Path(name).name != name]:
        raise OSError(
            f"{index} names {foreign[0]}, expected names of safetensors beside it; get the model's safetensors"
        )
    return names


def _without_safetensors(path: Path) -> str:
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if not pickled:
        return f"{path} holds neither {_WEIGHTS} nor {_INDEX}; save the model there with save_pretrained"
    return (
        f"{path} holds no {_WEIGHTS}, only {', '.join(pickled[:3])}: a pickle, which is run when it is read; "
        "get the model's safetensors, or convert it where you trust it"
    )


def _family(path: Path) -> Family:
    config = path / "config.json"
    if not config.is_file():
        raise OSError(f"{path} holds no config.json; give a directory that Hugging Face's save_pretrained wrote")
    values = read_object(config)
    try:
        return family_of(values)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None


def _tokenizer(path: Path) -> Tokenizer:
    if not (path / "tokenizer.json").is_file():
        raise OSError(
            f"{path} holds no tokenizer.json; save the model's fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path / 'tokenizer.json'} cannot be read: {error}") from None
    # A tokenizer keeps what its last call asked for; instructions are cut and padded by the backbone.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens([name for name in RESERVED if tokenizer.token_to_id(name) is None])
    return tokenizer


def read_processor(path: Path) -> Mapping[str, Any]:
    """The image processor's config, beside the processor's or, as of late, inside of it; empty where there is none.

    Raises ValueError for pixels that it makes in another way than this code.
    """
    where, found = path / "processor_config.json", None
    if where.is_file():
        found = read_object(where).get("image_processor")
    if not isinstance(found, Mapping):
        where = path / "preprocessor_config.json"
        found = read_object(where) if where.is_file() else {}
    for key, expected in _PIXELS.items():
        said = found.get(key)
        if said is not None and abs(said - expected) > 1e-6:
            raise ValueError(
                f"{where}: {key} is {said}, expected {expected}: pixels are always rescaled and normalised"
            )
    for key in ("image_mean", "image_std"):
        said = found.get(key)
        if said is not None and not (isinstance(said, list) and all(isinstance(value, int | float) for value in said)):
            raise ValueError(f"{where}: {key} is {said!r}, expected a number for each of three channels")
    return found


def _sides(family: Family, config: Any, processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Sides of a whole image, which is made square; models that also split images are given them whole."""
    if family.spatial_positions:  # these processors bound the number of pixels
        size = processor.get("size") or {}
        low = processor.get("min_pixels") or size.get("shortest_edge")
        high = processor.get("max_pixels") or size.get("longest_edge")
        return (math.ceil(math.sqrt(low)), math.isqrt(high)) if low and high else None
    own = config.vision_config.image_size
    own = own if isinstance(own, int) else own[0]
    if family.fixed_image_size:
        return own, own
    side = (processor.get("max_image_size") or {}).get("longest_edge") or own
    return side, side


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def read_object(path: Path) -> Mapping[str, Any]:
    """Raises OSError for a missing file, ValueError that names it for one that holds anything but an object of JSON."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def _without_origin(values: Any) -> Any:
    """A config without the paths and versions it was read with: the same model is the same data anywhere."""
    if isinstance(values, dict):
        origin = ("_name_or_path", "transformers_version")
        return {key: _without_origin(value) for key, value in values.items() if key not in origin}
    return values
