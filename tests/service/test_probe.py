"""A probe that cannot be read is refused by its name, by either of its readers: the service and the policy."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policy.checkpoint import CheckpointError, load_probe
from policy.policy import Policy
from service.probe import read_probe
from service.revision import RevisionError, read_revision

_CENTRAL_ENTRY = b"PK\x01\x02"


def cut_in_half(probe: Path) -> None:
    content = probe.read_bytes()
    probe.write_bytes(content[: len(content) // 2])


def corrupt_what_is_compressed(probe: Path) -> None:
    content = bytearray(probe.read_bytes())
    # The first array; its own head, and the archive's table at the end, stay as they are.
    content[80:120] = b"\xff" * 40
    probe.write_bytes(content)


def set_flags(probe: Path, flags: int) -> None:
    """Of the first entry in the archive's table."""
    content = bytearray(probe.read_bytes())
    content[content.index(_CENTRAL_ENTRY) + 8] = flags
    probe.write_bytes(content)


def ask_for_a_password(probe: Path) -> None:
    set_flags(probe, 1)


def say_it_is_a_patch(probe: Path) -> None:
    set_flags(probe, 0x20)


def hold_one_array(probe: Path) -> None:
    with probe.open("wb") as file:
        np.save(file, np.zeros(3))


def hold_nothing(probe: Path) -> None:
    probe.write_bytes(b"")


def hold_no_case(probe: Path) -> None:
    np.savez(probe, num_requests=np.array(0))


def count_in_a_list(probe: Path) -> None:
    np.savez(probe, num_requests=np.array([1, 2]))


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_half, corrupt_what_is_compressed, ask_for_a_password, say_it_is_a_patch, hold_one_array, hold_nothing,
        hold_no_case, count_in_a_list,
    ],
)  # fmt: skip
def test_a_damaged_probe_that_its_manifest_agrees_with_is_refused_and_named(
    toy_checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    checkpoint = Path(shutil.copytree(toy_checkpoint, tmp_path / "copy"))
    damage(checkpoint / "probe.npz")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / "probe.npz").read_bytes()
    manifest["files"]["probe.npz"] = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RevisionError, match=r"^probe\.npz "):
        read_probe(read_revision(checkpoint, policy="toy"))
    with pytest.raises(CheckpointError, match=r"^probe\.npz "):
        load_probe(checkpoint)
    with pytest.raises(CheckpointError, match=r"^probe\.npz "):
        Policy.from_checkpoint(checkpoint)
