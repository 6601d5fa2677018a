"""The comparison end to end: the service, the bare forward and Triton alone, started, asked, compared and stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from premotor.client.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def test_a_comparison_is_made_kept_and_said_by_its_command(toy_checkpoint, toy_specs, tmp_path: Path, capsys) -> None:
    result = tmp_path / "compare.json"
    command = ["compare", "--checkpoint", str(toy_checkpoint), "--embodiment", toy_specs[0].name]
    command += ["--source", str(ROOT), "--ways", "bare,premotor,triton", "--rounds", "2", "--block", "300ms"]
    command += ["--pin-client", "none", "--pin-servers", "none"]
    code = main([*command, "--robots", "2", "--load", "0.2", "--robot-counts", "", "--json", str(result)])
    found = json.loads(result.read_text())
    said = capsys.readouterr()
    assert code == (1 if found["problems"] else 0)
    # All that may be wrong is a machine too busy for robots to keep their times.
    assert all("could not keep its times" in problem for problem in found["problems"]), said.err
    assert (found["complete"], found["missing"], found["failed"]) == (True, {}, {})
    assert set(found["latency"]["ways"]) == {"bare", "premotor", "triton"}
    rounds_ms = {way: each["p50_ms"]["rounds"] for way, each in found["latency"]["ways"].items()}
    for way in ("premotor", "triton"):
        assert found["latency"]["ways"][way]["actions_equal"]
        assert all(0 < p50_ms < math.inf for p50_ms in rounds_ms[way])
        ratios = [own / bare for own, bare in zip(rounds_ms[way], rounds_ms["bare"], strict=True)]
        assert found["latency"]["ways"][way]["over_bare"]["rounds"] == pytest.approx(ratios)
        assert len(ratios) == 2
        assert found["fleet"]["ways"][way]["num_stale_actions"] == 0
    assert found["capacity"] is None
    assert found["asked"]["cameras"] == [f"{camera.name} 32x32" for camera in toy_specs[0].cameras]
    assert found["commit"] and "torch" in found["versions"]
    assert "over bare" in said.out and "MARK latency and fleet: 2 rounds" in said.out
