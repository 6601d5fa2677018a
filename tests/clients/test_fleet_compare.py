"""The side-by-side: what is started, what is missing, ratios inside rounds."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from premotor.client.__main__ import main
from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.errors import FixRequestError
from premotor.client.fleet.compare import latency_phase, rounds, ways
from premotor.client.fleet.compare.capacity_phase import most_supplied
from premotor.client.fleet.compare.equality import action_difference
from premotor.client.fleet.compare.load import fleet_load
from premotor.client.fleet.compare.ratios import bound, median_interval, round_ratios
from premotor.client.fleet.compare.rest import Rest
from premotor.client.fleet.compare.rounds import compare_ways
from premotor.client.fleet.compare.servers import running
from premotor.client.fleet.compare.settings import CompareSettings
from premotor.client.fleet.compare.table import compare_lines
from premotor.client.fleet.compare.ways import ServedWay, Turn, Ways
from premotor.client.fleet.endpoint import Answer, AskError, MissingPeerError
from premotor.client.fleet.machine import tree_cpu_s
from premotor.client.fleet.robot import Ask, RobotLog
from premotor.client.fleet.settings import FleetSettings
from premotor.client.fleet.worker import OpenLoop

ROOT = Path(__file__).resolve().parents[2]
JOINT = Group(name="joint", dim=1, kind="joint_position", unit="rad", representation="absolute")
BODY = Embodiment(
    name="arm",
    cameras=(Camera(name="front", height=16, width=16),),
    state=(JOINT,),
    action=(JOINT,),
    control_rate_hz=10.0,
)
DESCRIPTION = PolicyDescription(
    name="p",
    revision="r",
    variant="",
    embodiments=(BODY,),
    history_steps=0,
    action_horizon=4,
    execution_horizon=2,
    num_inference_steps=4,
    max_inference_steps=8,
    schema_digest="d",
)
FLEET = FleetSettings(endpoint="premotor", addresses=("x:1",), description=DESCRIPTION, embodiment=BODY)


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


def test_a_round_in_which_a_peer_got_nothing_counts_against_it() -> None:
    found = round_ratios([1.0, 2.0, 3.0], [0.0, 1.0, 0.0])
    assert found is not None
    assert (found["median"], found["high"], found["num_without"]) == (math.inf, math.inf, 0)
    against_us = round_ratios([0.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert against_us is not None and against_us["rounds"] == [0.0, 1.0, 1.0]


def test_rounds_that_say_nothing_are_left_out_and_counted() -> None:
    # The first of neither, the second of a block that does not count.
    found = round_ratios([0.0, math.nan, 2.0], [0.0, 1.0, 1.0])
    assert found is not None and (found["rounds"], found["num_without"]) == ([2.0], 2)
    assert round_ratios([0.0], [0.0]) is None
    assert median_interval([math.nan]) is None


def test_a_ratio_of_figures_that_could_have_been_more_is_only_a_bound() -> None:
    assert bound(own_is_open=False, other_is_open=False) == ""
    assert bound(own_is_open=True, other_is_open=False) == "at least"
    assert bound(own_is_open=False, other_is_open=True) == "at most"
    assert bound(own_is_open=True, other_is_open=True) == "open"


@pytest.mark.parametrize(
    "actions",
    [np.full((16, 4), np.nan, np.float32), np.full((16, 4), np.inf, np.float32), np.zeros((1, 4), np.float32)],
)
def test_chunks_that_are_not_finite_or_of_another_shape_are_as_unequal_as_can_be(actions: np.ndarray) -> None:
    expected = np.zeros((16, 4), np.float32)
    assert action_difference(actions, expected) == math.inf
    assert action_difference(expected, expected) == 0.0
    assert action_difference(expected + 3, expected + 1) == 1.0
    # As it was entered, and lost: a maximum with NaN is whichever came first.
    blocks = latency_phase._Blocks()
    blocks.enter(Turn(latencies_s=[1.0], chunks=[actions]), Turn(latencies_s=[1.0], chunks=[expected]))
    assert blocks.difference == math.inf


@pytest.mark.parametrize(
    ("capacity", "counts", "found", "tried"),
    [
        (11, (4, 8, 16, 24), (11, False), [4, 8, 16, 12, 10, 11]),
        (3, (4, 8), (3, False), [4, 2, 3]),
        (0, (4, 8), (0, False), [4, 2, 1]),
        (9, (4, 8), (8, True), [4, 8]),
    ],
)
async def test_the_most_robots_are_found_to_the_unit_or_said_to_be_at_the_grids_end(
    capacity: int, counts: tuple[int, ...], found: tuple[int, bool], tried: list[int]
) -> None:
    asked: list[int] = []

    async def is_supplied(count: int) -> bool:
        asked.append(count)
        return count <= capacity

    assert await most_supplied(counts, is_supplied) == found
    assert asked == tried


def test_the_fleet_asks_for_more_than_the_bare_forward_gives() -> None:
    load = fleet_load(settings(), bare_p50_s=0.02, action_horizon=16)
    assert 16 * load.rate_hz == pytest.approx(1.5 * 50.0)
    assert (load.bare_per_s, load.times_bare) == (pytest.approx(50.0), pytest.approx(1.5))
    # A chunk lasts two periods.
    assert 16 / load.control_rate_hz == pytest.approx(2 / load.rate_hz)
    asked = fleet_load(settings(rate_hz=2.0, control_rate_hz=10.0), bare_p50_s=0.02, action_horizon=16)
    assert (asked.rate_hz, asked.control_rate_hz, asked.times_bare) == (2.0, 10.0, pytest.approx(0.64))


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
        ({"capacity_rounds": 0}, "capacity_rounds is 0"),
        ({"num_robots": 0}, "num_robots is 0"),
        ({"rate_hz": -1.0}, "rate_hz is -1.0"),
        ({"rate_hz": math.nan}, "rate_hz is nan"),
        ({"load": 0.0}, "load is 0.0"),
        ({"control_rate_hz": 0.0}, "control_rate_hz is 0.0"),
        ({"threads": 0}, "threads is 0"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"block_s": math.inf}, "block_s is inf"),
        ({"ways": ("bare", "openpi", "openpi")}, "expected bare and others of"),
        ({"dtype": "fp16"}, "dtype is 'fp16'"),
        ({"robot_counts": (4, 2)}, "ascending"),
        ({"source": Path("/nowhere")}, "no checkout"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**wrong)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rounds", "1"], "at least 2"),
        (["--control-rate-hz", "0"], "control_rate_hz is 0"),
        (["--pin-client", "none", "--pin-servers", "100000"], "CPUs [100000] came"),
    ],
)
def test_the_command_refuses_a_wrong_call(capsys, flags: list[str], said: str) -> None:
    assert main(["compare", "--checkpoint", "x", *flags]) == 2
    assert said in capsys.readouterr().err


def test_frames_of_cameras_that_the_body_has_not_are_a_wrong_call() -> None:
    with pytest.raises(FixRequestError, match="2 cameras came, 'arm' has 1"):
        ways._asked(settings(cameras=(2, 96, 96), embodiment="arm"), DESCRIPTION)


class FakeBare:
    """A model that says the robot's and the question's number, at once."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    async def ask_in_turn(self, numbers: Sequence[int]) -> Turn:
        return Turn(latencies_s=[0.01] * len(numbers), chunks=[await self.chunk(0, n) for n in numbers], cpu_s=0.01)

    async def chunk(self, robot: int, number: int) -> np.ndarray:
        self.asked.append((robot, number))
        return np.full((4, 1), 100 * robot + number, np.float32)


class FakeWay:
    """Answers every question of a fleet of at most `capacity` robots after a tenth of its period, and no other."""

    driver_pipe_s = None
    end = ""

    def __init__(self, *, capacity: int = 100, error: float = 0.0, lag_s: float = 0.0, fails_after: int = 1000) -> None:
        self.settings, self.name = FLEET, ""
        self.capacity, self.error, self.lag_s, self.turns_left = capacity, error, lag_s, fails_after
        self.blocks: list[FleetSettings] = []

    async def ask_in_turn(self, numbers: Sequence[int]) -> Turn:
        self.turns_left -= 1
        if self.turns_left < 0:
            raise AskError("RetryableError", "the connection ended")
        chunks = [np.full((4, 1), number + self.error, np.float32) for number in numbers]
        return Turn(latencies_s=[0.02] * len(numbers), chunks=chunks, cpu_s=0.02)

    async def ask_openly(self, asked: FleetSettings) -> tuple[list[RobotLog], float | None]:
        self.blocks.append(asked)
        return [self.log(asked, robot) for robot in range(asked.num_robots)], 0.5

    def log(self, asked: FleetSettings, robot: int) -> RobotLog:
        log = RobotLog(robot=robot)
        for number in range(int(asked.duration_s * asked.rate_hz)):
            intended_s = number * asked.period_s
            ask = Ask(intended_s=intended_s, woke_s=intended_s + self.lag_s, sent_s=intended_s + self.lag_s)
            log.asks.append(ask)
            if robot < self.capacity:
                ask.ended_s = intended_s + 0.1 * asked.period_s
                actions = np.full((4, 1), 100 * robot + number + self.error, np.float32)
                ask.answer = Answer(actions=actions, response_bytes=1, received_s=ask.ended_s)
            else:
                ask.failure = "DeadlineExceededError"
        return log


def fake_ways(**served: FakeWay) -> Any:
    return Ways(description=DESCRIPTION, asked={"embodiment": "arm"}, bare=FakeBare(), served=served, missing={})  # pyright: ignore[reportArgumentType]


def toy_settings(**changes: object) -> CompareSettings:
    defaults = {"rounds": 2, "capacity_rounds": 2, "num_robots": 4, "robot_counts": (2, 4, 8), "block_s": 1.0}
    return settings(**{**defaults, **changes})


async def measured(told: CompareSettings, running: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, and what was kept after each phase."""
    kept: list[dict[str, Any]] = []
    return await compare_ways(told, running, lambda result: kept.append(json.loads(json.dumps(result)))), kept


async def test_one_way_that_fails_is_named_and_the_others_go_on() -> None:
    running = fake_ways(premotor=FakeWay(), openpi=FakeWay(fails_after=3), triton=FakeWay())
    result, _ = await measured(toy_settings(), running)
    assert result["failed"] == {"openpi": "the connection ended"}
    assert set(result["latency"]["ways"]) == {"bare", "premotor", "triton"}
    assert set(result["fleet"]["ways"]) == set(result["capacity"]["ways"]) == {"premotor", "triton"}
    assert result["problems"] == ["openpi failed: the connection ended"]
    assert "FAILED openpi: the connection ended" in list(compare_lines(result))


async def test_a_server_that_has_ended_is_a_failure_and_no_slow_way() -> None:
    dead = FakeWay(capacity=0)
    dead.end = "its server ended with -9"
    result, _ = await measured(toy_settings(), fake_ways(premotor=FakeWay(), openpi=dead))
    assert result["failed"] == {"openpi": "its server ended with -9"}


async def test_what_there_is_is_kept_after_each_phase() -> None:
    _, kept = await measured(toy_settings(), fake_ways(premotor=FakeWay()))
    phases = [[phase for phase in ("latency", "fleet", "capacity") if each[phase] is not None] for each in kept]
    assert phases == [["latency"], ["latency", "fleet"], ["latency", "fleet", "capacity"]]
    assert [each["complete"] for each in kept] == [False, False, True]


async def test_batched_chunks_are_compared_with_those_of_the_bare_forward() -> None:
    running = fake_ways(premotor=FakeWay(), openpi=FakeWay(error=0.5))
    # Right when it is asked alone, wrong in company.
    running.served["openpi"].ask_in_turn = running.served["premotor"].ask_in_turn
    result, _ = await measured(toy_settings(), running)
    premotor, openpi = (result["fleet"]["ways"][way] for way in ("premotor", "openpi"))
    assert (premotor["actions_equal"], premotor["max_action_difference"]) == (True, 0.0)
    assert premotor["num_chunks_compared"] == 2 * 16
    assert (openpi["actions_equal"], openpi["max_action_difference"] > 1e-3) == (False, True)
    assert result["problems"] == ["fleet: the actions of openpi are not those of the bare forward"]
    assert any("UNEQUAL" in line for line in compare_lines(result))
    # Questions of all robots, not of the first alone.
    assert {robot for robot, _ in running.bare.asked} == {0, 1, 2, 3}


async def test_a_way_that_sees_other_pixels_is_measured_and_not_judged() -> None:
    told = toy_settings(image_encoding="jpeg", robot_counts=())
    result, _ = await measured(told, fake_ways(premotor=FakeWay(error=0.5)))
    for phase in ("latency", "fleet"):
        found = result[phase]["ways"]["premotor"]
        assert (found["actions_equal"], found["max_action_difference"] > 1e-3) == (None, True)
    assert result["problems"] == []


async def test_a_block_whose_robots_were_late_is_repeated_once_and_then_left_out() -> None:
    late = FakeWay(lag_s=0.5)
    result, _ = await measured(toy_settings(robot_counts=()), fake_ways(premotor=FakeWay(), openpi=late))
    assert len(late.blocks) == 2 * 2
    found = result["fleet"]["ways"]["openpi"]
    assert (found["invalid_rounds"], found["repeated_blocks"], found["chunks_per_s"]) == (2, 2, None)
    assert result["fleet"]["ways"]["premotor"]["over"]["openpi"]["chunks_per_s"] is None
    assert ["2 rounds of openpi do not count" in problem for problem in result["problems"]] == [True]
    assert any("2 rounds INVALID, left out" in line for line in compare_lines(result))


async def test_a_way_that_answered_everything_is_not_saturated_and_its_ratio_a_bound() -> None:
    running = fake_ways(premotor=FakeWay(), openpi=FakeWay(capacity=2), triton=FakeWay())
    result, _ = await measured(toy_settings(), running)
    fleet = result["fleet"]["ways"]
    assert (fleet["premotor"]["saturated"], fleet["openpi"]["saturated"]) == (False, True)
    assert fleet["premotor"]["failures_by_kind"] == {}
    (failed,) = fleet["openpi"]["failures_by_kind"].items()
    assert failed[0] == "DeadlineExceededError" and failed[1] == sum(fleet["openpi"]["failures"]["rounds"])
    said = [line for line in compare_lines(result) if line.startswith("questions of")]
    assert said == [f"questions of openpi that failed: {failed[0]} {failed[1]}"]
    over = fleet["premotor"]["over"]
    assert over["openpi"]["chunks_per_s"]["median"] == pytest.approx(2.0)
    assert over["openpi"]["chunks_per_s"]["bound"] == "at least"
    assert over["triton"]["chunks_per_s"]["bound"] == "open"
    capacity = result["capacity"]["ways"]
    assert (capacity["premotor"]["robots"]["median"], capacity["premotor"]["rounds_at_the_end"]) == (8.0, 2)
    assert (capacity["openpi"]["robots"]["median"], capacity["openpi"]["rounds_at_the_end"]) == (2.0, 0)
    assert capacity["premotor"]["over"]["openpi"]["bound"] == "at least"
    text = "\n".join(compare_lines(result))
    assert "at the grid's end in 2 rounds" in text and "not saturated" in text and ">=2.000" in text
    # 1.5 times the 100 a second of a forward of 10 ms.
    assert "ask for 150.0 chunks/s, 1.50 times the bare forward's 100.0" in text
    assert fleet["openpi"]["server_cpu_us_per_chunk"]["median"] == pytest.approx(
        1e6 * 0.5 / (fleet["openpi"]["chunks_per_s"]["median"] * toy_settings().block_s), rel=1e-6
    )


async def test_few_rounds_and_shared_cpus_are_marked() -> None:
    result, _ = await measured(toy_settings(), fake_ways(premotor=FakeWay()))
    shortcut = (
        "triton: its questions go whole through Triton's HTTP service, which reads 4 KiB at a time; those of our "
        "service lie in shared memory from 64 KiB on"
    )
    assert result["marks"] == [
        "not pinned: robots and servers share this machine's CPUs",
        shortcut,
        "latency and fleet: 2 rounds, a figure to be published has at least 8",
        "capacity: 2 rounds, a figure to be published has at least 8",
    ]
    assert next(iter(compare_lines(result))) == "MARK not pinned: robots and servers share this machine's CPUs"
    pinned = settings(client_cpus=(1,), server_cpus=(0,))
    assert list(rounds._marks(pinned, fake_ways())) == [shortcut]
    # Where there is no Triton on either side, or on one alone, nobody has it easier by that.
    for other in ({"backend": "local"}, {"ways": ("bare", "premotor", "openpi")}):
        assert list(rounds._marks(replace(pinned, **other), fake_ways())) == []


async def test_a_result_says_what_made_it_and_no_more_of_the_machine(monkeypatch, tmp_path: Path) -> None:
    for way, package in (("openpi", "policy_websocket"), ("lerobot", "lerobot")):
        described = tmp_path / way / f"lib/python3.11/site-packages/{package}-1.2.3.dist-info/METADATA"
        described.parent.mkdir(parents=True)
        described.write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.2.3\n")
    monkeypatch.setattr(sys, "argv", ["x", "compare", "--checkpoint", "/far/away/tabletop", "--rounds", "2"])
    told = toy_settings(robot_counts=(), peers=tmp_path)
    result, _ = await measured(told, fake_ways(premotor=FakeWay()))
    assert result["command"] == "python -m premotor.client compare --checkpoint tabletop --rounds 2"
    assert result["asked"] == {"embodiment": "arm"}
    assert {"python", "torch"} <= set(result["versions"])
    assert (result["versions"]["policy-websocket"], result["versions"]["lerobot"]) == ("1.2.3", "1.2.3")
    assert datetime.fromisoformat(result["began"]).tzinfo is not None
    assert str(tmp_path) not in json.dumps(result) and "far/away" not in json.dumps(result)


async def test_the_pipe_to_a_driver_is_said_beside_the_latency_that_it_is_in() -> None:
    driven = FakeWay()
    driven.driver_pipe_s = 0.0004
    result, _ = await measured(toy_settings(robot_counts=()), fake_ways(premotor=FakeWay(), lerobot=driven))
    assert result["latency"]["ways"]["lerobot"]["driver_pipe_ms"] == pytest.approx(0.4)
    assert "of lerobot's p50 0.40 ms is the pipe to its driver, measured empty" in list(compare_lines(result))


async def test_cpu_time_is_that_of_the_window_whose_chunks_are_counted(monkeypatch) -> None:
    spent = []

    async def between(pid: int, first_s: float, end_s: float) -> float:
        spent.append((pid, end_s - first_s))
        return 0.25

    class Robots:
        driver_pipe_s = None

        async def run(self, order: OpenLoop) -> list[RobotLog]:
            return []

    monkeypatch.setattr(ways, "_spent_between", between)
    server: Any = SimpleNamespace(pid=7, end="")
    robots: Any = Robots()
    _, cpu_s = await ServedWay(server, robots, FLEET, Rest()).ask_openly(FLEET)
    assert (cpu_s, spent) == (0.25, [(7, pytest.approx(FLEET.duration_s - FLEET.settle_s))])


async def test_a_robot_asks_all_ways_in_turn_within_seconds_of_each_other(monkeypatch) -> None:
    monkeypatch.setattr(latency_phase, "_QUESTIONS_A_TURN", 2)
    turns: list[tuple[str, list[int]]] = []

    class Listed(FakeWay):
        async def ask_in_turn(self, numbers: Sequence[int]) -> Turn:
            turns.append((self.name, list(numbers)))
            return await super().ask_in_turn(numbers)

    names = ("premotor", "openpi", "triton")
    served = {name: Listed() for name in names}
    for name, way in served.items():
        way.name = name
    result, _ = await measured(toy_settings(rounds=2, block_s=0.05, robot_counts=()), fake_ways(**served))
    assert result["latency"]["questions_a_block"] == 5
    counted = [turn for turn in turns if turn[1] != [0]]
    for first in range(0, len(counted), len(names)):
        together = counted[first : first + len(names)]
        assert {name for name, _ in together} == set(names)
        assert len({tuple(numbers) for _, numbers in together}) == 1
    assert [numbers for name, numbers in counted if name == "openpi"] == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]


def test_a_block_of_robots_that_ask_seldom_begins_once_they_were_answered_and_counts_enough_periods() -> None:
    load = fleet_load(settings(num_robots=16), bare_p50_s=0.25, action_horizon=16)
    seldom = load.of(FLEET, num_robots=4, block_s=4.0, seed=1)
    assert seldom.period_s == pytest.approx(16 * 0.25 / 1.5)
    assert seldom.settle_s == pytest.approx(2 * seldom.period_s)
    assert seldom.duration_s - seldom.settle_s == pytest.approx(3 * seldom.period_s)
    load = fleet_load(settings(num_robots=16), bare_p50_s=0.02, action_horizon=16)
    often = load.of(FLEET, num_robots=4, block_s=4.0, seed=1)
    assert (often.settle_s, often.duration_s) == (1.0, 5.0)


def _busy(seconds: float) -> subprocess.Popen[bytes]:
    """A process that works for so long and then waits for its end."""
    work = f"import sys, time\nwhile time.process_time() < {seconds}: pass\nsys.stdin.read()"
    return subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)


async def test_a_block_begins_once_no_server_works_any_more() -> None:
    rest = Rest()
    with _busy(1.0) as process:
        rest.pids.add(process.pid)
        await rest()
        spent_s = tree_cpu_s(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert spent_s is None or spent_s >= 1.0 - 0.02
    assert rest.num_in_vain == 0


@pytest.mark.skipif(tree_cpu_s(os.getpid()) is None, reason="who is busy is read from /proc")
async def test_a_block_beside_a_server_that_does_not_end_its_work_is_marked() -> None:
    rest = Rest(timeout_s=0.1)
    with _busy(3600.0) as process:
        rest.pids.add(process.pid)
        try:
            await rest()
        finally:
            process.kill()
    found = fake_ways(premotor=FakeWay())
    found.rest.num_in_vain = rest.num_in_vain
    result, _ = await measured(toy_settings(), found)
    assert "1 blocks began beside a server that was still busy with what came before" in result["marks"]


async def test_a_block_of_a_fleet_waits_until_all_servers_are_at_rest() -> None:
    order = []

    class Robots:
        driver_pipe_s = None

        async def run(self, _: OpenLoop) -> list[RobotLog]:
            order.append("asked")
            return []

    async def rest() -> None:
        order.append("rest")

    server: Any = SimpleNamespace(pid=os.getpid(), end="")
    robots: Any = Robots()
    counted: Any = rest
    served = ServedWay(server, robots, FLEET, counted)
    await served.ask_openly(replace(FLEET, duration_s=FLEET.settle_s + 0.01))
    assert order == ["rest", "asked"]


def test_missing_peers_come_before_the_figures() -> None:
    result = {
        "marks": [],
        "missing": {"lerobot": "there is no python: run `make peers`\nand more"},
        "failed": {},
        "latency": {"ways": {}},
        "fleet": None,
        "capacity": None,
    }
    assert next(iter(compare_lines(result))) == "MISSING lerobot: there is no python: run `make peers`"
