"""The checkpoint: a directory that describes itself, proves itself by a probe, and holds nothing executable.

config.json, embodiments.json, tokenizer/, model.safetensors, probe.npz and manifest.json (the sha256 of every other
file). Its revision is the first 12 hex digits of the manifest's sha256, so equal revisions are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from policy.config import ModelConfig
from policy.durable import rename_durably
from policy.embodiment import EmbodimentSpec
from policy.models import Model, build_model
from policy.normalization import Statistics
from policy.request import ChunkRequest

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
REQUIRED_FILES = ("config.json", "embodiments.json", "model.safetensors", "probe.npz", "tokenizer/tokenizer.json")
Probe = list[tuple[ChunkRequest, Tensor]]


class CheckpointError(ValueError):
    """A checkpoint cannot be served; the message names the file and what is wrong with it."""


def write_checkpoint(
    directory: Path,
    *,
    vla: Model,
    specs: Sequence[EmbodimentSpec],
    statistics: Sequence[Statistics],
    probe: Probe,
    manifest: Mapping[str, Any],
) -> str:
    """Write beside `directory` and rename; returns the revision.

    `probe` holds recorded requests, their number of steps named, and the fp32 chunks that they must give. `manifest`
    adds method, variant, data, training, ...
    Raises FileExistsError when the directory exists: a checkpoint is immutable; OSError when it cannot be written,
    and nothing is left of it then.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists; a checkpoint is immutable, choose another directory")
    if not probe or any(request.num_inference_steps is None for request, _ in probe):
        raise ValueError("a checkpoint needs at least one probe request, each with its num_inference_steps")
    staged = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _write_parts(staged, vla, specs, statistics, probe)
        num_parameters = sum(value.numel() for value in vla.parameters())
        described = {
            "format_version": FORMAT_VERSION,
            "size": vla.config.size,
            "num_parameters": num_parameters,
            **manifest,
            "files": {name: _describe(staged / name) for name in _file_names(staged)},
        }
        _write_json(staged / MANIFEST, described)
        rename_durably(staged, directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return revision_of(directory)


def revision_of(directory: Path) -> str:
    """The content digest that names this checkpoint: 12 hex digits."""
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{MANIFEST} is missing in {directory}")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class CheckpointParts:
    """What a checkpoint holds, checked and built, before anybody asks it."""

    vla: Model
    tokenizer: Tokenizer
    specs: Sequence[EmbodimentSpec]
    statistics: Sequence[Statistics]
    manifest: Mapping[str, Any]
    revision: str


def read_checkpoint(directory: Path) -> CheckpointParts:
    """Every file is checked against the manifest before anything is read from it. Raises CheckpointError."""
    manifest = verify_files(directory)
    config = _config(_read_json(directory / "config.json"))
    specs, statistics = _embodiments(_read_json(directory / "embodiments.json"))
    if len(specs) != config.num_embodiments:
        raise CheckpointError(
            f"embodiments.json has {len(specs)} embodiments, config.json says {config.num_embodiments}"
        )
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"tokenizer/tokenizer.json cannot be read: {error}") from None
    vla = _build(config, tokenizer)
    _load_weights(vla, directory / "model.safetensors")
    return CheckpointParts(
        vla=vla,
        tokenizer=tokenizer,
        specs=specs,
        statistics=statistics,
        manifest=manifest,
        revision=revision_of(directory),
    )


def verify_files(directory: Path) -> dict[str, Any]:
    """The manifest, once every file in it has its recorded size and sha256 and none that is required is absent."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    if not (directory / MANIFEST).is_file():
        raise CheckpointError(f"{MANIFEST} is missing in {directory}")
    manifest = _read_json(directory / MANIFEST)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{MANIFEST} has format_version {manifest.get('format_version')!r}, this code reads {FORMAT_VERSION}"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{MANIFEST} has no table of files")
    for name in sorted({*REQUIRED_FILES, *files}):
        path = directory / name
        if name not in files:
            raise CheckpointError(f"{name} is not in {MANIFEST}")
        if not path.resolve().is_relative_to(directory.resolve()):
            raise CheckpointError(f"{MANIFEST} names {name}, which lies outside the checkpoint")
        if not path.is_file():
            raise CheckpointError(f"{name} is missing in {directory}")
        found = _describe(path)
        if found != files[name]:
            raise CheckpointError(f"{name} has changed: {found}, {MANIFEST} says {files[name]}")
    return manifest


def load_probe(directory: Path) -> Probe:
    """The recorded requests, at least one, and the chunks they must give (fp32, CPU). Raises CheckpointError."""
    try:
        # Opened here, for numpy leaves what is no archive open.
        with (directory / "probe.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            probe = [_probe(arrays, index) for index in range(int(arrays["num_requests"]))]
    except Exception as error:  # zipfile, zlib, tokenize and numpy each have errors of their own for damaged bytes
        raise CheckpointError(f"probe.npz cannot be read: {error!r}") from None
    if not probe:
        raise CheckpointError("probe.npz holds no case, expected at least one")
    return probe


def _probe(arrays: Mapping[str, np.ndarray], index: int) -> tuple[ChunkRequest, Tensor]:
    prefix = f"{index}/"
    own = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    images = {
        name.removeprefix("images/"): torch.from_numpy(frame)
        for name, frame in own.items()
        if name.startswith("images/")
    }
    history = "history_states" in own
    request = ChunkRequest(
        embodiment=str(own["embodiment"]),
        images=images,
        state=torch.from_numpy(own["state"]),
        instruction=str(own["instruction"]),
        history_states=torch.from_numpy(own["history_states"]) if history else None,
        history_actions=torch.from_numpy(own["history_actions"]) if history else None,
        seed=int(own["seed"]),
        num_inference_steps=int(own["num_inference_steps"]),
    )
    return request, torch.from_numpy(own["expected"])


def _write_parts(
    directory: Path, vla: Model, specs: Sequence[EmbodimentSpec], statistics: Sequence[Statistics], probe: Probe
) -> None:
    """All of a checkpoint but its manifest."""
    (directory / "tokenizer").mkdir(parents=True)
    config = vla.config
    _write_json(
        directory / "config.json", {"format_version": FORMAT_VERSION, **_summary(config), "model": config.to_json()}
    )
    embodiments = [
        {"spec": spec.to_json(), "digest": spec.digest, "statistics": values}
        for spec, values in zip(specs, statistics, strict=True)
    ]
    _write_json(directory / "embodiments.json", {"embodiments": embodiments})
    vla.backbone.save_tokenizer(str(directory / "tokenizer"))
    _write_weights(directory / "model.safetensors", vla)
    _write_probe(directory / "probe.npz", probe)


def _write_probe(path: Path, probe: Probe) -> None:
    arrays: dict[str, np.ndarray] = {"num_requests": np.array(len(probe))}
    for index, (request, chunk) in enumerate(probe):
        own: dict[str, Any] = {
            "embodiment": request.embodiment,
            "instruction": request.instruction,
            "seed": request.seed,
            "num_inference_steps": request.num_inference_steps,
            "state": request.state.cpu().numpy(),
            "expected": chunk.cpu().numpy(),
            **{f"images/{name}": frame.cpu().numpy() for name, frame in request.images.items()},
        }
        if request.history_states is not None and request.history_actions is not None:
            own["history_states"] = request.history_states.cpu().numpy()
            own["history_actions"] = request.history_actions.cpu().numpy()
        arrays |= {f"{index}/{name}": np.asarray(value) for name, value in own.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _build(config: ModelConfig, tokenizer: Tokenizer) -> Model:
    try:
        return build_model(config, tokenizer)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from None


def _write_weights(path: Path, vla: Model) -> None:
    weights = {name: value.detach().cpu().contiguous() for name, value in vla.state_dict().items()}
    try:
        save_file(weights, path)
    except SafetensorError as error:  # which is no OSError, though a full disk is what it says
        raise OSError(f"{path} cannot be written: {error}") from None


def _load_weights(vla: Model, path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from None
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path.name}: weight {name} holds NaN or infinity")
    try:
        vla.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} does not fit config.json: {error}") from None


def _config(values: Mapping[str, Any]) -> ModelConfig:
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"config.json has format_version {values.get('format_version')!r}, this code reads {FORMAT_VERSION}"
        )
    try:
        return ModelConfig.from_json(values["model"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"config.json: {error}") from None


def _embodiments(values: Mapping[str, Any]) -> tuple[list[EmbodimentSpec], list[Statistics]]:
    specs, statistics = [], []
    try:
        for entry in values["embodiments"]:
            spec = EmbodimentSpec.from_json(entry["spec"])
            if spec.digest != entry["digest"]:
                raise ValueError(f"digest of {spec.name!r} is {entry['digest']}, its spec gives {spec.digest}")
            if spec.name in [other.name for other in specs]:
                raise ValueError(f"embodiment {spec.name!r} is there twice, expected once")
            specs.append(spec)
            statistics.append(entry["statistics"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"embodiments.json: {error}") from None
    return specs, statistics


def _summary(config: ModelConfig) -> dict[str, Any]:
    """What a server that cannot build the model must still know."""
    prefix = {"max_inference_delay": config.max_inference_delay} if config.max_inference_delay else {}
    return {
        "size": config.size,
        "action_horizon": config.action_horizon,
        "execution_horizon": config.execution_horizon,
        "history_steps": config.history_steps,
        "num_inference_steps": config.num_inference_steps,
        "max_inference_steps": config.max_inference_steps,
        "image_size": config.image_size,
        **prefix,
    }


def _file_names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "num_bytes": path.stat().st_size}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name} holds {type(values).__name__}, expected an object")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
