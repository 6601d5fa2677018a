"""The model repository that Triton reads: one model per revision.

Owns model names, config.pbtxt and the few lines of model.py. Does not own checkpoints: a model points at the directory
of its checkpoint and Policy.from_checkpoint verifies it inside Triton.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from service.model_settings import ModelSettings
from service.triton.tensors import CHUNK, REQUEST

# `service` and `policy` are importable here, so they are from this directory; Triton's stub ignores PYTHONPATH.
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


def model_name(revision: str, owner: str = "") -> str:
    """`owner` is whose model it is where several services share a Triton (tenancy.py)."""
    return f"premotor_{revision}_{owner}" if owner else f"premotor_{revision}"


def write_model(
    repository: Path, model: str, checkpoint: Path, settings: ModelSettings, *, shares_memory: bool = False
) -> None:
    """Writes, or rewrites, the model of a checkpoint. Triton reloads a model only when one of its files is newer."""
    directory = repository / model
    (directory / "1").mkdir(parents=True, exist_ok=True)
    _replace(directory / "config.pbtxt", model_config(model, checkpoint, settings, shares_memory=shares_memory))
    _replace(directory / "1" / "model.py", _model_source())


def remove_model(repository: Path, model: str) -> None:
    shutil.rmtree(repository / model, ignore_errors=True)


def model_config(model: str, checkpoint: Path, settings: ModelSettings, *, shares_memory: bool = False) -> str:
    """Its config.pbtxt. `shares_memory`: it reads requests out of the memory of whoever reaches its Triton."""
    parameters = "\n".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}"
        for key, value in (
            ("checkpoint", str(checkpoint.resolve())),
            ("device", settings.device),
            ("dtype", settings.dtype),
            ("threads", str(settings.threads)),
            ("shares_memory", str(shares_memory).lower()),
        )
    )
    # No queue policy: with one, 2.51 stalls whole batches for half a second now and then. Deadlines are kept before
    # Triton.
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {settings.max_queue_delay_us} }}\n"
    return (
        f"name: {json.dumps(model)}\n"
        'backend: "python"\n'
        f"max_batch_size: {settings.largest_batch}\n"
        f'input [ {{ name: "{REQUEST}" data_type: TYPE_UINT8 dims: [ -1 ] allow_ragged_batch: true }} ]\n'
        f'output [ {{ name: "{CHUNK}" data_type: TYPE_UINT8 dims: [ -1 ] }} ]\n'
        f"instance_group [ {{ kind: {'KIND_GPU' if settings.device == 'cuda' else 'KIND_CPU'} count: 1 }} ]\n"
        f"{batching if settings.batching else ''}"
        f"{parameters}\n"
    )


def _model_source() -> str:
    root = repr(str(_SOURCE_ROOT))
    return (
        "import importlib\n"
        "import sys\n\n"
        f"if {root} not in sys.path:\n"
        f"    sys.path.insert(0, {root})\n\n"
        "from service.background import in_background\n\n"
        'adapter = in_background(lambda: importlib.import_module("service.triton.adapter"))\n'
        "TritonPythonModel = adapter.TritonPythonModel\n"
    )


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
