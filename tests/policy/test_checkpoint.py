"""A checkpoint proves itself before it serves, and says what is wrong when it cannot."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.checkpoint import CheckpointError, load_probe, read_checkpoint, revision_of, write_checkpoint
from policy.embodiment import EmbodimentSpec
from policy.instructions import InstructionTooLongError
from policy.policy import InvalidObservationError, Policy
from policy.request import ChunkRequest

MakeRequest = Callable[..., ChunkRequest]


@pytest.fixture
def copy(toy_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_checkpoint, tmp_path / "copy"))


def remanifest(directory: Path) -> None:
    """Make the manifest agree with changed files, so that only deeper checks can object."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        content = (directory / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    path.write_text(json.dumps(manifest))


def test_a_checkpoint_gives_its_recorded_chunks(toy_checkpoint: Path) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    probe = load_probe(toy_checkpoint)
    chunks = policy.predict_chunk([request for request, _ in probe])
    for (_, expected), chunk in zip(probe, chunks, strict=True):
        torch.testing.assert_close(chunk, expected, atol=1e-5, rtol=1e-5)
    assert policy.revision == revision_of(toy_checkpoint)
    assert len(policy.revision) == 12


@pytest.mark.parametrize(
    "name", ["config.json", "embodiments.json", "model.safetensors", "probe.npz", "tokenizer/tokenizer.json"]
)
def test_a_flipped_byte_is_refused_and_names_the_file(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=name):
        Policy.from_checkpoint(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "probe.npz", "manifest.json"])
def test_a_missing_file_is_refused_and_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        Policy.from_checkpoint(copy)


def test_nan_weights_are_refused_and_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["latent.bias"][0] = float("nan")
    save_file(weights, copy / "model.safetensors")
    remanifest(copy)
    with pytest.raises(CheckpointError, match=r"latent\.bias holds NaN"):
        Policy.from_checkpoint(copy)


def test_a_failing_probe_is_refused_and_says_how_far_it_is_off(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["prior.decoder.velocity_out.bias"] += 1.0
    save_file(weights, copy / "model.safetensors")
    remanifest(copy)
    with pytest.raises(CheckpointError, match=r"probe\.npz: the chunk of embodiment 'arm' is off by"):
        Policy.from_checkpoint(copy)


def test_weights_of_another_model_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["latent.bias"]
    save_file(weights, copy / "model.safetensors")
    remanifest(copy)
    with pytest.raises(CheckpointError, match=r"does not fit config\.json"):
        Policy.from_checkpoint(copy)


def test_a_manifest_may_not_name_a_file_outside(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "0", "num_bytes": 0}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        Policy.from_checkpoint(copy)


def test_a_pickled_probe_is_refused(copy: Path) -> None:
    np.savez(copy / "probe.npz", num_requests=np.array([{}], dtype=object))
    remanifest(copy)
    with pytest.raises(CheckpointError, match=r"probe\.npz"):
        Policy.from_checkpoint(copy)


def change_probe(directory: Path, **changes: np.ndarray) -> None:
    """Of the first request, which is one of `arm`."""
    with np.load(directory / "probe.npz") as arrays:
        kept = dict(arrays)
    np.savez(directory / "probe.npz", **{**kept, **{f"0/{name}": value for name, value in changes.items()}})
    remanifest(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # One row would be compared with every row of the chunk.
        (
            {"expected": np.zeros((1, 3), np.float32)},
            r"the chunk of embodiment 'arm' is \(1, 3\), the policy gives \(4, 3",
        ),
        (
            {"expected": np.zeros((5, 3), np.float32)},
            r"the chunk of embodiment 'arm' is \(5, 3\), the policy gives \(4, 3",
        ),
        ({"state": np.zeros(9, np.float32)}, r"state has shape \(9,\), expected \(4,\)"),
        ({"embodiment": np.array("leg")}, "embodiment is 'leg'"),
        ({"instruction": np.array("1" * 129)}, "an instruction of 129 tokens"),
    ],
)
def test_a_probe_that_does_not_fit_its_policy_is_refused(
    copy: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    change_probe(copy, **changes)
    with pytest.raises(CheckpointError, match=rf"^probe\.npz: {message}"):
        Policy.from_checkpoint(copy)


def spoil(values: dict[str, Any], *path: Any, value: Any) -> None:
    *parents, last = path
    for key in parents:
        values = values[key]
    values[last] = value


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("config.json", ("model",), [], "model is list, expected an object"),
        ("config.json", ("model", "image_size"), "32", "image_size is '32', expected a whole number"),
        ("config.json", ("model", "decoder", "num_kv_heads"), 0, "trunk.num_kv_heads is 0"),
        ("config.json", ("model", "encoder_inputs"), "state", "encoder_inputs is 'state', expected one of"),
        ("config.json", ("model", "backbone", "channels"), 4, "backbone: "),
        ("embodiments.json", ("embodiments",), 3, "embodiments.json: "),
        ("embodiments.json", ("embodiments", 0), "arm", "embodiments.json: "),
        ("embodiments.json", ("embodiments", 0, "spec"), ["arm"], "embodiments.json: "),
        ("embodiments.json", ("embodiments", 0, "spec", "cameras", 0), 1, "the spec does not fit"),
        ("embodiments.json", ("embodiments", 0, "statistics"), [], "'arm' lack state"),
        ("embodiments.json", ("embodiments", 0, "statistics", "state"), 1, "'arm' lack state"),
        (
            "embodiments.json",
            ("embodiments", 0, "statistics", "action", "min"),
            ["0"] * 3,
            "action.min holds what is no",
        ),
    ],
)
def test_json_of_another_form_is_refused_and_names_the_file(
    copy: Path, name: str, path: tuple[Any, ...], value: Any, message: str
) -> None:
    values = json.loads((copy / name).read_text())
    spoil(values, *path, value=value)
    (copy / name).write_text(json.dumps(values))
    remanifest(copy)
    with pytest.raises(CheckpointError, match=message) as raised:
        Policy.from_checkpoint(copy)
    assert str(raised.value).startswith(f"{name}: ")


def test_a_body_that_is_there_twice_is_refused(copy: Path) -> None:
    values = json.loads((copy / "embodiments.json").read_text())
    values["embodiments"][1] = values["embodiments"][0]
    (copy / "embodiments.json").write_text(json.dumps(values))
    remanifest(copy)
    with pytest.raises(CheckpointError, match=r"embodiments\.json: embodiment 'arm' is there twice"):
        Policy.from_checkpoint(copy)


def test_a_checkpoint_that_cannot_be_written_whole_leaves_nothing(toy_checkpoint: Path, tmp_path: Path) -> None:
    parts, probe = read_checkpoint(toy_checkpoint), load_probe(toy_checkpoint)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What fits into this file size is everything but the weights.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors cannot be written: .*File too large"):
            write_checkpoint(
                tmp_path / "new",
                vla=parts.vla,
                specs=parts.specs,
                statistics=parts.statistics,
                probe=probe,
                manifest={},
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_alone_equals_the_same_chunk_in_a_mixed_batch(
    toy_checkpoint: Path, make_toy_request: MakeRequest, toy_specs: tuple[EmbodimentSpec, ...]
) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    batch = [
        replace(make_toy_request(spec, seed=seed, num_history_steps=seed % 4), num_inference_steps=1 + seed)
        for seed in range(4)
        for spec in toy_specs
    ]
    together = policy.predict_chunk(batch)
    for request, chunk in zip(batch, together, strict=True):
        torch.testing.assert_close(policy.predict_chunk([request])[0], chunk, atol=1e-5, rtol=1e-5)


def test_history_of_length_0_equals_no_history(
    toy_checkpoint: Path, make_toy_request: MakeRequest, toy_specs: tuple[EmbodimentSpec, ...]
) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    spec = toy_specs[0]
    without = make_toy_request(spec, seed=3)
    empty = replace(
        without, history_states=torch.zeros(0, spec.state_dim), history_actions=torch.zeros(0, spec.action_dim)
    )
    some = replace(
        without, history_states=torch.ones(2, spec.state_dim), history_actions=torch.ones(2, spec.action_dim)
    )
    beside = make_toy_request(toy_specs[1], seed=1, num_history_steps=3)
    expected = policy.predict_chunk([without])[0]
    torch.testing.assert_close(policy.predict_chunk([empty])[0], expected, atol=0, rtol=0)
    torch.testing.assert_close(policy.predict_chunk([empty, beside])[0], expected, atol=1e-5, rtol=1e-5)
    assert (policy.predict_chunk([some])[0] - expected).abs().max() > 1e-4


def test_the_seed_decides_the_chunk(
    toy_checkpoint: Path, make_toy_request: MakeRequest, toy_specs: tuple[EmbodimentSpec, ...]
) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    request = make_toy_request(toy_specs[0], seed=5)
    first, again = policy.predict_chunk([request]), policy.predict_chunk([request])
    other = policy.predict_chunk([replace(request, seed=6)])
    assert torch.equal(first[0], again[0])
    assert (first[0] - other[0]).abs().max() > 1e-3


def _pictures(wrist: torch.Tensor) -> dict[str, object]:
    return {"images": {"front": torch.zeros(32, 32, 3, dtype=torch.uint8), "wrist": wrist}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embodiment": "leg"}, "embodiment is 'leg'"),
        ({"state": torch.zeros(5)}, r"state has shape \(5,\), expected \(4,\)"),
        ({"state": torch.tensor([0.0, float("nan"), 0.0, 0.0])}, "state holds a value that is not finite"),
        ({"images": {}}, r"images are \[\], expected \['front', 'wrist'\]"),
        ({"instruction": "  "}, "instruction is blank"),
        ({"history_states": torch.zeros(1, 4)}, "must come together"),
        ({"history_states": torch.zeros(9, 4), "history_actions": torch.zeros(9, 3)}, "history has 9 steps"),
        ({"num_inference_steps": 9}, "num_inference_steps is 9, expected 1 to 8"),
        ({"seed": -1}, "seed is -1"),
        (
            _pictures(torch.zeros(8, 8, 3)),
            r"image 'wrist' is torch.float32 \(8, 8, 3\), expected uint8 \[height, width, 3",
        ),
        (
            _pictures(torch.zeros(3, 8, 8, dtype=torch.uint8)),
            r"image 'wrist' is torch.uint8 \(3, 8, 8\), expected uint8",
        ),
        (_pictures(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)), r"image 'wrist' is torch.uint8 \(1, 8, 8, 3\)"),
        (_pictures(torch.zeros(0, 8, 3, dtype=torch.uint8)), r"image 'wrist' is torch.uint8 \(0, 8, 3\)"),
        (
            {"history_states": torch.tensor(1.0), "history_actions": torch.tensor(1.0)},
            r"history_states has shape \(\), expected a row a step",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_refused_by_name(
    toy_checkpoint: Path,
    make_toy_request: MakeRequest,
    toy_specs: tuple[EmbodimentSpec, ...],
    change: dict[str, object],
    message: str,
) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    request = replace(make_toy_request(toy_specs[0]), **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidObservationError, match=message):
        policy.predict_chunk([request])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_chunk_is_float32_whatever_the_state_came_as(
    toy_checkpoint: Path, make_toy_request: MakeRequest, toy_specs: tuple[EmbodimentSpec, ...], dtype: torch.dtype
) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    request = replace(make_toy_request(toy_specs[1]), state=torch.full((6,), 0.25))  # its actions are relative
    (chunk,) = policy.predict_chunk([replace(request, state=request.state.to(dtype))])
    assert chunk.dtype == torch.float32
    assert torch.equal(chunk, policy.predict_chunk([request])[0])


def test_an_instruction_that_would_be_cut_is_refused_with_both_numbers(
    toy_checkpoint: Path, make_toy_request: MakeRequest, toy_specs: tuple[EmbodimentSpec, ...]
) -> None:
    policy = Policy.from_checkpoint(toy_checkpoint)
    fits = replace(make_toy_request(toy_specs[0]), instruction="1" * 128)
    policy.check(fits)
    with pytest.raises(InstructionTooLongError, match="an instruction of 129 tokens came, expected at most 128"):
        policy.check(replace(fits, instruction="1" * 129))
