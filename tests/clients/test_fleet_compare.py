"""The side-by-side: what is started, what is missing, ratios inside rounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from premotor.client.__main__ import main
from premotor.client.fleet.compare.command import compare_lines
from premotor.client.fleet.compare.ratios import median_interval, round_ratios
from premotor.client.fleet.compare.servers import running
from premotor.client.fleet.compare.settings import CompareSettings
from premotor.client.fleet.endpoint import MissingPeerError
from premotor.client.fleet.machine import describe_machine, tree_cpu_s

ROOT = Path(__file__).resolve().parents[2]


def settings(**changes: object) -> CompareSettings:
    defaults = {
        "checkpoint": ROOT / "checkpoints" / "tabletop",
        "embodiment": "sawyer",
        "source": ROOT,
        "python": sys.executable,
        "peers": Path("peers"),
    }
    return CompareSettings(**{**defaults, **changes})


def test_a_ratio_is_taken_inside_each_round() -> None:
    # The machine is ten times slower in the second round: the ratio does not care.
    found = round_ratios([2.0, 22.0, 2.1], [1.0, 10.0, 1.0])
    assert found is not None
    assert found["rounds"] == pytest.approx([2.0, 2.2, 2.1])
    assert found["median"] == pytest.approx(2.1)
    assert 2.0 <= found["low"] <= found["median"] <= found["high"] <= 2.2 + 1e-9


def test_rounds_without_a_denominator_have_no_ratio() -> None:
    found = round_ratios([1.0, 2.0], [0.0, 1.0])
    assert found is not None and found["rounds"] == [2.0]
    assert round_ratios([1.0], [0.0]) is None
    assert median_interval([float("nan")]) is None


async def test_a_server_is_ready_by_its_line_and_ended_afterwards() -> None:
    program = "import json, time; print(json.dumps({'addresses': ['x']}), flush=True); time.sleep(60)"
    async with running((sys.executable, "-c", program), source=ROOT, cpus=()) as server:
        assert server.ready == {"addresses": ["x"]}
        os.kill(server.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("/nowhere/python", "x"), "make peers"),
        ((sys.executable, "-c", "raise SystemExit('no module named lerobot')"), "no module named lerobot"),
        ((sys.executable, "-c", "print('hello', flush=True)"), "did not start"),
    ],
)
async def test_a_peer_that_does_not_start_is_missing_with_its_reason(command: tuple[str, ...], said: str) -> None:
    with pytest.raises(MissingPeerError, match=said):
        async with running(command, source=ROOT, cpus=()):
            pass


def test_each_way_runs_the_same_checkpoint_with_the_same_threads() -> None:
    told = settings(threads=2, dtype="bf16", num_robots=5, robot_counts=())
    for way in ("bare", "openpi", "lerobot", "triton"):
        command = " ".join(told.peer_command(way, Path("/c"), 128, 96))
        assert "--checkpoint /c --threads 2 --dtype bf16" in command
    assert "--robots 5 --height 128 --width 96" in " ".join(told.peer_command("lerobot", Path("/c"), 128, 96))
    assert told.peer_command("openpi", Path("/c"), 1, 1)[0] == "peers/openpi/bin/python"
    assert "--threads 2 --dtype bf16" in " ".join(told.service_command(Path("/c")))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ways": ("premotor",)}, "expected bare"),
        ({"ways": ("bare", "positronic")}, "expected bare and others of"),
        ({"rounds": 1}, "at least 2"),
        ({"robot_counts": (4, 2)}, "ascending"),
        ({"source": Path("/nowhere")}, "no checkout"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**wrong)


def test_the_command_refuses_a_wrong_call(capsys) -> None:
    assert main(["compare", "--checkpoint", "x", "--rounds", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_missing_peers_come_first_in_the_table() -> None:
    ratio = {"median": 1.02, "low": 1.01, "high": 1.03, "rounds": []}
    way = {
        "p50_ms": ratio,
        "over_bare": ratio,
        "server_cpu_us_per_request": None,
        "max_action_difference": 0.0,
        "actions_equal": True,
    }
    result = {
        "missing": {"lerobot": "there is no python: run `make peers`"},
        "latency": {"ways": {"premotor": way}},
        "fleet": {"num_robots": 16, "ways": {}},
        "capacity": None,
    }
    lines = list(compare_lines(result))
    assert lines[0] == "MISSING lerobot: there is no python: run `make peers`"
    assert "1.020 (1.010 to 1.030)" in lines[2]


def test_the_cpu_time_of_a_process_includes_what_it_started() -> None:
    busy = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    child = f"import sys\n{busy}print('done', flush=True)\nsys.stdin.read()"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=sys.stdin)\n"
        "sys.stdin.read() if child.wait() else None"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"done\n"
        found = tree_cpu_s(process.pid)
        process.stdin.close()
    assert found is None or found >= 0.2


def test_a_machine_is_described_without_its_name() -> None:
    told = str(describe_machine())
    assert os.uname().nodename not in told or len(os.uname().nodename) < 4
