"""Checkpoints that must be refused, each for a reason of its own, and whole but for it.

Owns the damage. Does not own who notices it (revision.py, the policy, the probe).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def damaged(checkpoint: Path, store: Path) -> Mapping[str, str]:
    """What is wrong to the name of a checkpoint below `store` that has exactly that."""
    made = {}
    for what, damage in _DAMAGES.items():
        name = what.replace(" ", "-")
        shutil.copytree(checkpoint, store / name)
        damage(store / name)
        made[what] = name
    return made


def _flip_a_byte(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "tokenizer" / "tokenizer.json").unlink()


def _put_nan_into_the_weights(checkpoint: Path) -> None:
    """With a manifest that agrees: only reading the weights shows it."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype.kind == "f" and tensor.ndim == 2)
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan
    save_file(tensors, path)
    _agree(checkpoint, "model.safetensors")


def _expect_another_chunk(checkpoint: Path) -> None:
    """With a manifest that agrees: only asking the model shows it."""
    path = checkpoint / "probe.npz"
    with np.load(path, allow_pickle=False) as arrays:
        probe = dict(arrays)
    probe["0/expected"] = probe["0/expected"] + np.float32(0.5)
    np.savez(path, **probe)
    _agree(checkpoint, "probe.npz")


def _agree(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=2))


_DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "flipped byte": _flip_a_byte,
    "missing file": _remove_a_file,
    "NaN weights": _put_nan_into_the_weights,
    "wrong probe": _expect_another_chunk,
}
