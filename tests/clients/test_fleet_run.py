"""A fleet from its command to its report, against a gateway on loopback; and the figures by themselves."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from premotor.client.__main__ import main
from premotor.client.errors import FixRequestError
from premotor.client.fleet.command import fleet_lines
from premotor.client.fleet.endpoint import Answer, AskError, Sent
from premotor.client.fleet.faults import Fault, FaultCommands, FaultEvent, carry_out, default_faults, read_faults
from premotor.client.fleet.figures import broken_assertions, fairness_and_bytes, fleet_figures, robot_figures
from premotor.client.fleet.html_report import fleet_page
from premotor.client.fleet.network import NONE
from premotor.client.fleet.proxy import ShapingProxy
from premotor.client.fleet.questions import Question, Questions
from premotor.client.fleet.robot import Ask, Robot, RobotLog
from premotor.client.fleet.run import FleetRun, check_run, run_fleet
from premotor.client.fleet.settings import FleetSettings
from premotor.client.fleet.svg import Axis, Plot
from premotor.client.identity import TlsOptions
from premotor.client.sync_client import PolicyClient

CHUNK = np.zeros((4, 3), np.float32)
# What a report has beside its figures.
CONDITIONS = {
    "in_flight": "",
    "began": "",
    "settings": {},
    "machine": {},
    "versions": {},
    "pinned": False,
    "driver_pipe_ms": None,
}


@pytest.fixture
def settings(gateway) -> FleetSettings:
    """One second of three robots; chunks of 4 actions at 8 Hz, asked for four times a second."""
    with PolicyClient(gateway.address) as client:
        description = client.get_policy("tabletop")
    return FleetSettings(
        endpoint="premotor",
        addresses=(gateway.address,),
        description=description,
        embodiment=description.embodiment(),
        num_robots=3,
        rate_hz=4.0,
        duration_s=1.2,
        settle_s=0.4,
        control_rate_hz=8.0,
    )


def ask(intended_s: float, latency_s: float | None, *, revision: str = "a", lag_s: float = 0.0) -> Ask:
    sent_s = intended_s + lag_s
    asked = Ask(intended_s=intended_s, woke_s=sent_s, sent_s=sent_s, request_bytes=100)
    if latency_s is None:
        asked.ended_s, asked.failure = sent_s + 1.0, "DeadlineExceededError"
        return asked
    asked.ended_s = intended_s + latency_s
    asked.answer = Answer(
        actions=CHUNK,
        revision=revision,
        server_s={"inference": 0.01, "total": 0.02},
        response_bytes=10,
        received_s=asked.ended_s,
    )
    return asked


def figures(settings: FleetSettings, logs: list[RobotLog], faults: tuple[FaultEvent, ...] = ()) -> dict:
    return fleet_figures(settings, [robot_figures(settings, log) for log in logs], faults)


def test_the_command_measures_and_writes_both_reports(gateway, tmp_path: Path, capsys) -> None:
    result, page = tmp_path / "fleet.json", tmp_path / "fleet.html"
    command = ["fleet", "--address", gateway.address, "--policy", "tabletop", "--robots", "3", "--rate-hz", "4"]
    command += ["--duration", "1200ms", "--settle", "400ms", "--control-rate-hz", "8", "--network", "lan"]
    code = main([*command, "--json", str(result), "--html", str(page), "--processes", "2"])
    report = json.loads(result.read_text())
    # A machine that is too busy for the robots to keep their times makes no other report.
    assert code == (0 if report["valid"] else 1)
    fleet = report["fleet"]
    assert fleet["num_questions"] == fleet["num_answered"] > 6
    assert fleet["num_control_steps"] == 3 * 6
    assert fleet["revisions"] == ["0123456789ab"]
    assert report["asserted"] == {
        "no_stale_action_played": True,
        "num_stale_actions": 0,
        "every_fault_was_carried_out": True,
        "every_robot_recovered": True,
    }
    assert report["proxy_bytes"]["up"] > fleet["request_bytes"]
    assert [robot["robot"] for robot in report["robots"]] == [0, 1, 2]
    assert gateway.address not in result.read_text()
    assert "control steps supplied" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    assert {request.robot_id for request in gateway.service.requests} == {"fleet-0", "fleet-1", "fleet-2"}


def test_a_fleet_whose_gateway_is_away_fails_and_says_so(settings: FleetSettings) -> None:
    with pytest.raises(AskError, match="cannot be reached"):
        run_fleet(replace(settings, addresses=("127.0.0.1:1",), open_timeout_s=0.3))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--endpoint", "openpi"], "give --description"),
        (["--policy", "tabletop", "--cameras", "3x224"], "3 cameras came"),
        (["--policy", "tabletop", "--faults", "default", "--duration", "5s"], "30 s"),
        ([], "needs --policy"),
        (["--policy", "tabletop", "--control-rate-hz", "0"], "control_rate_hz is 0"),
        (["--policy", "tabletop", "--pin", "100000"], "CPUs [100000] came"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_asked(gateway, capsys, flags: list[str], said: str) -> None:
    assert main(["fleet", "--address", gateway.address, *flags]) == 2
    assert said in capsys.readouterr().err
    assert gateway.service.requests == []


def test_no_proxy_stands_on_the_way_of_an_encrypted_wire(settings: FleetSettings) -> None:
    encrypted = replace(settings, tls=TlsOptions())
    check_run(encrypted, ())
    with pytest.raises(ValueError, match="no network profile, no faults with TLS"):
        check_run(replace(encrypted, network="lan"), ())
    with pytest.raises(ValueError, match="no network profile, no faults with TLS"):
        run_fleet(encrypted, [Fault(kind="pause", at_s=0.1, duration_s=0.1)])


def test_a_page_that_could_not_be_written_is_refused_before_anything_is_asked(gateway, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fleet", "--address", gateway.address, "--policy", "tabletop", "--html", "/nowhere/fleet.html"])
    assert ended.value.code == 2
    assert "a file in a folder that exists" in capsys.readouterr().err
    assert gateway.service.requests == []


class HeldEndpoint:
    """Answers once the robot has no more times to wait for; one question at a time."""

    max_in_flight = 1
    num_reconnections = 0

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.last_time_s = time.monotonic()

    async def open(self, *, timeout_s: float) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
        self.asked.append(question)
        sent(1)
        # The loop wakes what is due earlier first, however late it is.
        await asyncio.sleep(self.last_time_s - time.monotonic())
        return Answer(actions=CHUNK, response_bytes=1, received_s=time.monotonic())


async def test_where_a_wire_is_full_the_newest_question_waits_and_older_ones_are_never_sent(
    settings: FleetSettings,
) -> None:
    questions = Questions(settings.description, settings.embodiment, image_encoding="raw", with_history=False, seed=0)
    endpoint = HeldEndpoint()
    start_s = time.monotonic()
    endpoint.last_time_s = start_s + 1.0
    log = await Robot(0, endpoint, questions, start_s=start_s, timeout_s=10.0).run(np.array([0.0, 0.1, 0.2, 0.3]))
    assert [asked.sent_s is None for asked in log.asks] == [False, True, True, False]
    first, newest = log.asks[0], log.asks[-1]
    assert first.ended_s is not None and newest.sent_s is not None and newest.ended_s is not None
    assert newest.sent_s >= first.ended_s
    # From when it was meant to be asked, the wait included; which is the wire's and not this process's lag.
    assert newest.latency_s == newest.ended_s - newest.intended_s
    assert newest.lag_s == newest.woke_s - newest.intended_s < newest.sent_s - newest.intended_s
    assert [question.seed for question in endpoint.asked] == [0, 3000]


async def test_a_question_that_no_server_could_answer_ends_the_run(settings: FleetSettings) -> None:
    class Refusing(HeldEndpoint):
        async def ask(self, question: Question, *, timeout_s: float, sent: Sent) -> Answer:
            raise FixRequestError("state has 3 dimensions")

    questions = Questions(settings.description, settings.embodiment, image_encoding="raw", with_history=False, seed=0)
    robot = Robot(0, Refusing(), questions, start_s=time.monotonic(), timeout_s=1.0)
    with pytest.raises(FixRequestError):
        await robot.run(np.linspace(0.0, 0.05, 6))


def test_latency_is_counted_from_the_intended_time_and_split(settings: FleetSettings) -> None:
    log = RobotLog(robot=0, asks=[ask(0.5, 0.2, lag_s=0.05)])
    found = figures(settings, [log])["fleet"]
    assert found["latency_ms"]["p50"] == pytest.approx(200.0)
    split = {name: span["p50"] for name, span in found["latency_split_ms"].items() if span is not None}
    assert split == pytest.approx({"unsent": 50.0, "inference": 10.0, "total": 20.0, "wire": 130.0})


def test_only_chunks_that_came_in_the_window_are_counted(settings: FleetSettings) -> None:
    # Counted from 0.4 to 1.2 s: one asked for before it and one that comes after it stand on either side.
    log = RobotLog(robot=0, asks=[ask(0.3, 0.2), ask(0.5, 0.1), ask(0.7, 0.1), ask(1.1, 0.3)])
    found = figures(settings, [log])
    assert (found["fleet"]["num_questions"], found["fleet"]["num_answered"]) == (3, 3)
    assert found["fleet"]["num_chunks"] == found["robots"][0]["num_chunks"] == 3
    assert found["fleet"]["chunks_per_s"] == pytest.approx(3 / 0.8)
    drained = RobotLog(robot=0, asks=[ask(0.9 + 0.05 * i, 0.5) for i in range(4)])
    assert figures(settings, [drained])["fleet"]["chunks_per_s"] == 0


def test_bytes_are_counted_as_they_go_out(settings: FleetSettings) -> None:
    never_sent = Ask(intended_s=0.6, woke_s=0.6)
    log = RobotLog(robot=0, asks=[ask(0.5, 0.2), never_sent, ask(0.75, None)])
    found = figures(settings, [log])["fleet"]
    assert (found["request_bytes"], found["response_bytes"]) == (200, 10)


def test_what_could_be_supplied_by_looking_again_is_said_beside_what_was(settings: FleetSettings) -> None:
    # On the robot from 0.4 until 0.8 s, when the wire was free; a chunk lasts 0.5 s.
    waited = ask(0.4, 0.45)
    waited.waited, waited.sent_s = True, 0.8
    found = figures(settings, [RobotLog(robot=0, asks=[waited])])["fleet"]
    assert found["supplied_share"] == 0
    assert found["supplied_share_looking_again"] == pytest.approx(3 / 6)


def test_a_chunk_that_no_body_could_play_ends_the_run_with_its_shape(settings: FleetSettings) -> None:
    odd = ask(0.5, 0.1)
    assert odd.answer is not None
    odd.answer = replace(odd.answer, actions=np.zeros((4, 2), np.float32))
    with pytest.raises(AskError, match=r"a chunk of shape \[4, 2\] came, expected \[1 or more, 3\]"):
        robot_figures(settings, RobotLog(robot=0, asks=[odd]))


def test_what_failed_or_was_late_missed_its_deadline(settings: FleetSettings) -> None:
    # A chunk lasts 0.5 s, a period 0.25 s: the deadline is after 0.25 s.
    log = RobotLog(robot=0, asks=[ask(0.5, 0.2), ask(0.75, 0.3), ask(1.0, None)])
    found = figures(settings, [log])["fleet"]
    assert (found["deadline_misses"], found["failures"]) == (2, {"DeadlineExceededError": 1})


def test_a_run_that_could_not_keep_its_times_is_invalid(settings: FleetSettings) -> None:
    on_time = figures(settings, [RobotLog(robot=0, asks=[ask(0.5, 0.2, lag_s=0.02)])])
    late = figures(settings, [RobotLog(robot=0, asks=[ask(0.5, 0.2, lag_s=0.03)])])
    assert (on_time["valid"], late["valid"]) == (True, False)
    assert not figures(settings, [RobotLog(robot=0)])["valid"]
    run = FleetRun(settings=settings, robots=(), report={**late, **CONDITIONS})
    assert next(iter(fleet_lines(run))).startswith("INVALID")
    assert "could not keep its times" in broken_assertions(late)[0]


def test_unequal_supply_shows_in_the_index(settings: FleetSettings) -> None:
    served = RobotLog(robot=0, asks=[ask(0.25 * i, 0.01) for i in range(5)])
    starved = RobotLog(robot=1, asks=[ask(0.25 * i, None) for i in range(5)])
    starved.messages["DeadlineExceededError"] = "late"
    found = figures(settings, [served, starved])
    assert found["fleet"]["fairness"]["jain_index_of_supplied_steps"] == pytest.approx(0.5)
    assert found["fleet"]["robots_supplied"] == 1
    assert [robot["supplied_share"] for robot in found["robots"]] == [1.0, 0.0]
    robots = tuple(robot_figures(settings, log) for log in (served, starved))
    run = FleetRun(settings=settings, robots=robots, report={**found, **CONDITIONS})
    said = {name: text for text, name in fairness_and_bytes(found)}
    assert said["Jain's index of supplied steps"] == "0.500"
    assert said["latency p99 of the robots"] == "10.0 to 10.0 ms"
    # To a person as well, in both reports.
    page, lines = fleet_page(run), "\n".join(fleet_lines(run))
    for name, text in said.items():
        assert f"{name} {text}" in lines
        assert f"<b>{text}</b><span>{escape(name)}</span>" in page


def test_a_swap_is_seen_where_the_revision_changes(settings: FleetSettings) -> None:
    log = RobotLog(robot=2, asks=[ask(0.5, 0.1), ask(0.7, 0.1), ask(0.9, 0.1, revision="b")])
    (swap,) = figures(settings, [log])["fleet"]["swaps_seen"]
    assert swap == {"robot": 2, "at_s": pytest.approx(1.0), "before": "a", "after": "b"}


def test_episodes_that_go_to_one_revision_or_the_other_are_no_swaps_after_the_first(settings: FleetSettings) -> None:
    revisions = "aabbabba"
    log = RobotLog(robot=0, asks=[ask(0.1 * i, 0.1, revision=revision) for i, revision in enumerate(revisions)])
    (swap,) = figures(settings, [log])["fleet"]["swaps_seen"]
    assert (swap["at_s"], swap["before"], swap["after"]) == (pytest.approx(0.3), "a", "b")


def test_a_hold_is_the_fault_that_began_last_before_it(settings: FleetSettings) -> None:
    long = replace(settings, duration_s=12.0)
    answered = [ask(0.25 * i, 0.01) for i in range(48) if not (8 <= i < 16 or 24 <= i < 36)]
    faults = (
        FaultEvent(kind="pause", start_s=1.9, end_s=3.0),
        FaultEvent(kind="partition", start_s=5.9, end_s=8.0),
        FaultEvent(kind="swap", start_s=11.0, end_s=11.1),
    )
    pause, partition, swap = figures(long, [RobotLog(robot=0, asks=answered)], faults)["faults"]
    assert (pause["num_holds"], partition["num_holds"], swap["num_holds"]) == (1, 1, 0)
    assert pause["recovery_s"]["max"] == pytest.approx(1.125)
    assert partition["recovery_s"]["max"] == pytest.approx(1.125)
    assert swap["recovery_s"] is None
    assert partition["longest_hold_s"] == pytest.approx(2.875)
    assert [fault["robots_never_recovered"] for fault in (pause, partition, swap)] == [0, 0, 0]


def test_a_robot_that_holds_until_the_end_never_recovered(settings: FleetSettings) -> None:
    long = replace(settings, duration_s=30.0)
    back = RobotLog(robot=0, asks=[ask(0.25 * i, 0.01) for i in range(120) if not 40 <= i < 80])
    gone = RobotLog(robot=1, asks=[ask(0.25 * i, 0.01) for i in range(40)])
    restart = FaultEvent(kind="restart", start_s=10.0, end_s=12.0)
    report = figures(long, [back, gone], (restart,))
    (fault,) = report["faults"]
    assert (fault["robots_that_held"], fault["robots_never_recovered"], fault["robots_answered_again"]) == (2, 1, 1)
    # Of the one that did.
    assert fault["recovery_s"] == {"median": pytest.approx(8.125), "max": pytest.approx(8.125)}
    assert not report["asserted"]["every_robot_recovered"]
    assert broken_assertions(report) == ["1 robots never recovered from the restart at 10.0 s"]
    alone = figures(long, [gone], (restart,))
    assert alone["faults"][0]["recovery_s"] is None
    for each in (report, alone):
        run = FleetRun(settings=long, robots=(), report={**each, **CONDITIONS})
        assert not any("recovered" in line for line in fleet_lines(run))


def test_a_hold_at_the_very_end_is_not_a_robot_that_never_recovered(settings: FleetSettings) -> None:
    long = replace(settings, duration_s=12.0)
    # The last chunk runs out an eighth of a second before the end, long after the fault and its hold.
    asks = [ask(0.25 * i, 0.01) for i in range(46) if not 16 <= i < 20]
    fault = FaultEvent(kind="pause", start_s=3.9, end_s=5.0)
    (found,) = figures(long, [RobotLog(robot=0, asks=asks)], (fault,))["faults"]
    assert (found["robots_that_held"], found["robots_never_recovered"], found["num_holds"]) == (1, 0, 1)


def test_a_fault_that_was_not_carried_out_is_a_failed_run_and_no_recovery(settings: FleetSettings) -> None:
    log = RobotLog(robot=0, asks=[ask(0.25 * i, 0.01) for i in range(5)])
    failed = FaultEvent(kind="swap", start_s=0.5, end_s=0.6, problem="'swap' ended with 1")
    report = figures(settings, [log], (failed,))
    assert not report["asserted"]["every_fault_was_carried_out"]
    assert "was not carried out: 'swap' ended with 1" in broken_assertions(report)[0]
    lines = list(fleet_lines(FleetRun(settings=settings, robots=(), report={**report, **CONDITIONS})))
    assert "NOT CARRIED OUT: 'swap' ended with 1" in lines[-1]


def test_the_command_fails_when_a_fault_was_not_carried_out(gateway, tmp_path: Path, capsys) -> None:
    schedule = tmp_path / "faults.json"
    schedule.write_text(json.dumps([{"kind": "swap", "at_s": 0.1}]))
    command = ["fleet", "--address", gateway.address, "--policy", "tabletop", "--robots", "1", "--rate-hz", "4"]
    command += ["--duration", "600ms", "--settle", "100ms", "--control-rate-hz", "8", "--faults", str(schedule)]
    assert main([*command, "--swap-command", f"{sys.executable} -c 1/0"]) == 1
    assert "the swap at 0.1 s was not carried out" in capsys.readouterr().err


def test_default_faults_leave_out_what_there_is_no_command_for() -> None:
    kinds = [fault.kind for fault in default_faults(60.0, FaultCommands())]
    assert kinds == ["pause", "pause", "pause", "loss", "partition"]
    more = default_faults(60.0, FaultCommands(restart="r", swap="s"))
    assert [fault.kind for fault in more][-2:] == ["restart", "swap"]
    assert sum(fault.duration_s for fault in more if fault.kind == "partition") == 5.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"kind": "quake", "at_s": 1}], "expected one of pause, loss, partition, restart, swap"),
        ([{"kind": "pause", "at_s": 1}], "only cuts and losses last"),
        ([{"kind": "swap", "at_s": 1}], "needs --swap-command"),
        ([{"kind": "pause", "at_s": 1, "duration_s": 0.2, "why": 1}], "why"),
        ({"kind": "pause"}, "no list of objects"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        read_faults(path, FaultCommands())


async def test_commands_are_run_at_their_times_and_a_failure_is_kept() -> None:
    swap = f"{sys.executable} -c \"import sys; sys.exit('no such revision')\""
    commands = FaultCommands(restart=f"{sys.executable} -c pass", swap=swap)
    faults = (
        Fault(kind="swap", at_s=0.0),
        Fault(kind="restart", at_s=0.0),
        Fault(kind="pause", at_s=0.0, duration_s=0.1),
    )
    proxy = ShapingProxy(NONE, seed=0)
    try:
        events = await carry_out(faults, proxy, commands, start_s=time.monotonic())
    finally:
        await proxy.close()
    problems = {event.kind: event.problem for event in events}
    assert problems["restart"] == problems["pause"] == ""
    assert "no such revision" in problems["swap"]
    assert all(event.end_s > event.start_s for event in events)


class Page(HTMLParser):
    """Collects what a page would load, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href", "data")]


def test_the_page_is_one_file_that_loads_nothing_and_shows_faults(settings: FleetSettings) -> None:
    asks = [ask(0.1 * i, 0.05 * (1 + i % 3), revision="a" if i < 6 else "b") for i in range(12)]
    robots = tuple(robot_figures(settings, RobotLog(robot=i, asks=asks)) for i in range(3))
    faults = (FaultEvent(kind="partition", start_s=0.5, end_s=0.7, problem="<script>"),)
    report = {**fleet_figures(settings, robots, faults), **CONDITIONS}
    text = fleet_page(FleetRun(settings=settings, robots=robots, report=report))
    page = Page()
    page.feed(text)
    assert page.loaded == []
    assert page.tags.count("svg") == 5
    assert "script" not in page.tags and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text
    assert "new revision" in text and "partition" in text


def test_a_run_without_an_answer_still_has_a_page(settings: FleetSettings) -> None:
    robots = (robot_figures(settings, RobotLog(robot=0, asks=[ask(0.5, None)])),)
    report = {**fleet_figures(settings, robots, ()), **CONDITIONS}
    assert "No answer came." in fleet_page(FleetRun(settings=settings, robots=robots, report=report))


def test_a_plot_puts_values_where_its_axes_say() -> None:
    plot = Plot("x", Axis(label="a", low=0.0, high=10.0), Axis(label="b", low=1.0, high=100.0, logarithmic=True))
    plot.line(np.array([0.0, 5.0, 10.0]), np.array([1.0, 10.0, 1000.0]))
    (points,) = re.findall(r'points="([^"]+)"', plot.svg())
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points.split())
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y2 < y1 < y0
    with pytest.raises(ValueError, match="expected an increase"):
        Axis(label="a", low=1.0, high=1.0)
