"""`python -m premotor.client`: results on stdout, the rest on stderr, 2 for a wrong call and 1 for a failed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from premotor.client.__main__ import main


@pytest.fixture
def frame_file(tmp_path: Path) -> Path:
    path = tmp_path / "front.png"
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(path)
    return path


def predict_command(address: str, frame_file: Path, *more: str) -> list[str]:
    command = ["predict", "--address", address, "--policy", "tabletop", "--image", f"front={frame_file}"]
    return [*command, "--state", "-0.5,.25,1", "--instruction", "pick up the block", *more]


def test_predict_prints_the_chunk_and_writes_it(gateway, frame_file: Path, tmp_path: Path, capsys) -> None:
    result = tmp_path / "chunk.json"
    assert main(predict_command(gateway.address, frame_file, "--seed", "9", "--json", str(result))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "revision 0123456789ab  embodiment sawyer  seed 9" in lines[0]
    assert lines[2].split() == ["step", "arm[0]", "arm[1]", "gripper[0]"]
    assert lines[3].split() == ["0", "-0.5000", "0.2500", "1.0000"]
    assert len(lines) == 3 + 4
    written = json.loads(result.read_text())
    assert written["actions"][1] == [0.5, 1.25, 2.0]
    assert written["timing"]["inference_s"] == 0.003
    (request,) = gateway.service.requests
    assert request.observation.images["front"].compressed == frame_file.read_bytes()


def test_policies_lists_and_describes(gateway, tmp_path: Path, capsys) -> None:
    result = tmp_path / "policies.json"
    assert main(["policies", "--address", gateway.address, "--json", str(result)]) == 0
    listed = capsys.readouterr().out
    assert main(["policies", "tabletop", "--address", gateway.address]) == 0
    assert capsys.readouterr().out == listed
    assert "tabletop  revision 0123456789ab, history" in listed
    assert "cameras  front 32x24" in listed
    assert "action   arm[2] (m, delta), gripper[1] (1)" in listed
    (written,) = json.loads(result.read_text())
    assert written["embodiments"][0]["control_rate_hz"] == 80.0


@pytest.mark.parametrize("image_encoding", ["jpeg", "raw"])
def test_bench_measures_valid_requests(gateway, tmp_path: Path, capsys, image_encoding: str) -> None:
    result = tmp_path / "bench.json"
    command = [
        "bench",
        "--address",
        gateway.address,
        "--policy",
        "tabletop",
        "--concurrency",
        "3",
        "--json",
        str(result),
    ]
    assert main([*command, "--duration-s", "0.4", "--warmup-s", "0.1", "--image-encoding", image_encoding]) == 0
    printed = capsys.readouterr()
    assert "warming up" in printed.err
    report = json.loads(result.read_text())
    assert f"{report['num_chunks']} chunks" in printed.out
    assert report["num_chunks"] == pytest.approx(report["chunks_per_s"] * 0.4)
    assert 0 < report["num_chunks"] < len(gateway.service.requests), "the warm-up is not counted"
    assert (report["errors"], report["revisions"]) == ({}, ["0123456789ab"])
    assert {name: share["num_robots"] for name, share in report["embodiments"].items()} == {"sawyer": 3}
    spans = report["spans_ms"]
    assert spans["server_inference"] == pytest.approx(dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 3.0))
    assert 0 < spans["round_trip"]["p50"] <= spans["round_trip"]["p90"] <= spans["round_trip"]["max"]
    assert {request.robot_id for request in gateway.service.requests} == {"bench-0", "bench-1", "bench-2"}
    for request in gateway.service.requests[:20]:
        state = np.frombuffer(request.observation.state.data, np.float32)
        assert ((state >= [-1, -1, 0]) & (state <= [1, 1, 0.5])).all()
        assert list(request.history.states.shape) == [2, 3]
        image = request.observation.images["front"]
        if image_encoding == "raw":
            assert list(image.pixels.shape) == [24, 32, 3]
        else:
            assert image.compressed.startswith(b"\xff\xd8\xff")
    assert len({request.observation.state.data for request in gateway.service.requests}) > 3


def add_bodies(gateway, *names: str) -> None:
    """More bodies for the policy, each with one camera more than the one before."""
    for name in names:
        body = gateway.service.policy.embodiments.add()
        body.CopyFrom(gateway.service.policy.embodiments[-2])
        body.name = name
        body.cameras.add(name=f"{name}-wrist", height=24, width=32)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"sawyer": 2, "panda": 2, "aloha": 1}),
        (("--embodiment", "panda"), {"panda": 5}),
        (("--concurrency", "2"), {"sawyer": 1, "panda": 1}),
    ],
)
def test_bench_spreads_its_robots_over_all_bodies_unless_one_is_named(
    gateway, tmp_path: Path, capsys, arguments: tuple[str, ...], expected: dict[str, int]
) -> None:
    add_bodies(gateway, "panda", "aloha")
    result = tmp_path / "bench.json"
    command = ["bench", "--address", gateway.address, "--policy", "tabletop", "--concurrency", "5"]
    times = ("--duration-s", "0.4", "--warmup-s", "0")
    assert main([*command, *times, "--json", str(result), *arguments]) == 0
    report = json.loads(result.read_text())
    shares = report["embodiments"]
    assert {name: share["num_robots"] for name, share in shares.items()} == expected
    asked = {request.robot_id: request.embodiment for request in gateway.service.requests}
    assert {name: list(asked.values()).count(name) for name in expected} == expected
    assert sum(share["num_chunks"] for share in shares.values()) == report["num_chunks"]
    assert all(share["num_chunks"] for share in shares.values())
    sizes = [share["request_bytes"] for share in shares.values()]
    assert sizes == sorted(set(sizes)), "more cameras, larger requests"
    printed = capsys.readouterr().out
    for name, share in shares.items():
        robots = "1 robot" if share["num_robots"] == 1 else f"{share['num_robots']} robots"
        assert f"  {name:<16}  {robots}, " in printed


def test_one_chunk_is_of_one_body_which_must_be_named(gateway, frame_file: Path, capsys) -> None:
    add_bodies(gateway, "panda")
    assert main(predict_command(gateway.address, frame_file)) == 2
    assert "policy 'tabletop' drives sawyer, panda" in capsys.readouterr().err


def test_bench_counts_errors_by_kind_and_fails_without_a_chunk(gateway, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("premotor.client.synthetic.INSTRUCTION", "error UNAVAILABLE")
    result = tmp_path / "bench.json"
    command = ["bench", "--address", gateway.address, "--policy", "tabletop", "--concurrency", "2"]
    assert main([*command, "--duration-s", "0.6", "--warmup-s", "0", "--json", str(result)]) == 1
    report = json.loads(result.read_text())
    assert report["num_chunks"] == 0
    assert report["spans_ms"] == {}
    assert report["errors"] == {"RetryableError": report["num_errors"]}
    # Each robot waits the named 0.25 s between its attempts.
    assert 2 <= report["num_errors"] <= 6
    assert "0 chunks" in capsys.readouterr().out


def test_bench_stops_when_its_requests_are_refused(gateway, capsys, monkeypatch) -> None:
    monkeypatch.setattr("premotor.client.synthetic.INSTRUCTION", "error INVALID_ARGUMENT")
    command = ["bench", "--address", gateway.address, "--policy", "tabletop", "--duration-s", "60"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "INVALID_ARGUMENT" in printed.err


def test_a_wrong_call_exits_2_and_says_what_to_change(gateway, frame_file: Path, capsys) -> None:
    assert main(["policies", "table", "--address", gateway.address]) == 2
    assert "the nearest is 'tabletop'" in capsys.readouterr().err
    assert main(predict_command(gateway.address, frame_file, "--embodiment", "aloha")) == 2
    assert "drives sawyer" in capsys.readouterr().err
    assert main(["bench", "--address", gateway.address, "--policy", "tabletop", "--concurrency", "0"]) == 2
    assert "concurrency is 0, expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--state", "1,two"], "expected numbers with commas"),
        (["--image", "front"], "expected CAMERA=FILE"),
        (["--image", "front=/nowhere.png"], "cannot be read"),
        (["--timeout-s", "0"], "expected a positive number of seconds"),
        (["--json", "/nowhere/chunk.json"], "expected a file in a folder that exists"),
    ],
)
def test_arguments_are_refused_before_anything_is_asked(
    gateway, frame_file: Path, capsys, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*predict_command(gateway.address, frame_file), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert gateway.service.requests == []


def test_a_failed_call_exits_1_without_a_traceback() -> None:
    command = [sys.executable, "-m", "premotor.client", "policies", "--address", "127.0.0.1:1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "RetryableError: UNAVAILABLE" in result.stderr
    assert "Traceback" not in result.stderr
