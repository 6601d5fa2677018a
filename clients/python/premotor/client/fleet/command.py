"""`python -m premotor.client fleet`: flags to settings, and a run to what is printed and written.

Owns the flags of the verb, those of every verb apart. Does not own the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from premotor.client.description import PolicyDescription
from premotor.client.errors import FixRequestError
from premotor.client.fleet.description_file import read_description_file
from premotor.client.fleet.endpoint import AskError, MissingPeerError
from premotor.client.fleet.faults import Fault, FaultCommands, default_faults, read_faults
from premotor.client.fleet.figures import broken_assertions, fairness_and_bytes
from premotor.client.fleet.html_report import write_html
from premotor.client.fleet.machine import cpu_shares, describe_command
from premotor.client.fleet.network import PROFILES
from premotor.client.fleet.questions import with_frames
from premotor.client.fleet.run import FleetRun, check_run, run_fleet
from premotor.client.fleet.settings import ENDPOINT_KINDS, FleetSettings, parse_cameras, parse_duration_s
from premotor.client.images import IMAGE_ENCODINGS
from premotor.client.result_file import writable_file, write_json
from premotor.client.sync_client import PolicyClient

_Value = TypeVar("_Value")
_DEFAULT_FAULTS = "default"
_ENDPOINT_HELP = (
    "premotor, premotor-unary: a gateway of this service; openpi: a server whose policy reads observation/<camera>, "
    "observation/state and prompt; lerobot: a PolicyServer that has its policy already; triton: Triton with a model of "
    "this service (default %(default)s)"
)


def add_fleet_flags(verb: argparse.ArgumentParser) -> None:
    """`--address` may name several servers with commas between them."""
    verb.add_argument("--endpoint", choices=ENDPOINT_KINDS, default="premotor", help=_ENDPOINT_HELP)
    verb.add_argument("--policy", default="", help="for the endpoints premotor and premotor-unary")
    verb.add_argument("--embodiment", default="", help="may be left out where the policy drives one body")
    verb.add_argument("--description", type=Path, metavar="FILE", help="for the others: `policies NAME --json FILE`")
    verb.add_argument("--robots", type=int, default=16, help="default %(default)s")
    verb.add_argument("--rate-hz", type=float, default=2.0, help="questions a second of each (default %(default)s)")
    verb.add_argument("--jitter", type=float, default=0.1, help="of a period, early or late (default %(default)s)")
    verb.add_argument("--duration", type=parsed(parse_duration_s), default=60.0, metavar="TIME", help="default 60s")
    verb.add_argument("--settle", type=parsed(parse_duration_s), default=2.0, metavar="TIME", help="uncounted; 2s")
    verb.add_argument("--control-rate-hz", type=float, help="of playing a chunk (default: the embodiment's)")
    verb.add_argument("--cameras", type=parsed(parse_cameras), metavar="NxSIZE", help="default: the embodiment's")
    verb.add_argument("--image-encoding", choices=IMAGE_ENCODINGS, default="raw", help="default %(default)s")
    verb.add_argument("--history", choices=("on", "off"), default="on", help="premotor's wire alone carries it")
    verb.add_argument("--num-inference-steps", type=int, help="default: the policy's own")
    verb.add_argument(
        "--answer-timeout",
        type=parsed(parse_duration_s),
        metavar="TIME",
        help="default: a chunk's length on premotor's wire, which tells the server; on the others a robot waits",
    )
    verb.add_argument("--network", choices=tuple(PROFILES), default="none", help="default %(default)s")
    verb.add_argument("--faults", metavar="FILE", help="a schedule in JSON, or `default`")
    verb.add_argument("--restart-command", default="", help="restarts the server, when the schedule says so")
    verb.add_argument("--swap-command", default="", help="promotes another revision, when the schedule says so")
    verb.add_argument("--processes", type=int, default=1, help="that the robots live in (default %(default)s)")
    verb.add_argument(
        "--pin",
        type=parsed(parse_cpus),
        metavar="CPU,CPU-CPU",
        help="of all of this run, or none (default: the last quarter where there are two or more)",
    )
    verb.add_argument("--seed", type=int, default=0, help="of phases, jitter, frames and losses")
    verb.add_argument("--lerobot-python", default="build/peers/lerobot/bin/python", help="default %(default)s")
    verb.add_argument("--triton-model", default="", help="the model's name in Triton")
    verb.add_argument("--html", type=writable_file, metavar="FILE", help="also write one page with plots")


def run_fleet_command(arguments: argparse.Namespace, identity: dict[str, Any]) -> int:
    """0 for a run that holds, 1 for one that failed, is invalid or broke an assertion. Raises FixRequestError."""
    try:
        description = _description(arguments, identity)
        settings = _settings(arguments, description, identity)
        commands = FaultCommands(restart=arguments.restart_command, swap=arguments.swap_command)
        faults = _faults(arguments.faults, settings, commands)
        check_run(settings, faults)
    except (ValueError, OSError) as error:
        raise FixRequestError(str(error)) from error
    print(f"{settings.num_robots} robots ask for {settings.duration_s:g} s", file=sys.stderr)
    try:
        run = run_fleet(settings, faults, commands)
    except (AskError, MissingPeerError) as error:
        print(f"premotor.client: {error}", file=sys.stderr)
        return 1
    run.report["command"] = describe_command(arguments.address)
    print("\n".join(fleet_lines(run)))
    write_json(arguments.json, run.report)
    if arguments.html is not None:
        write_html(run, arguments.html)
    broken = broken_assertions(run.report)
    for each in broken:
        print(f"premotor.client: {each}", file=sys.stderr)
    return 1 if broken else 0


def parsed(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """For argparse, which hides what a ValueError says."""

    def convert(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def parse_cpus(text: str) -> tuple[int, ...]:
    """`0,2-3` as numbers; `none` is none of them. Raises ValueError."""
    if text == "none":
        return ()
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise ValueError(f"{text!r} came, expected CPUs such as 0,2-3, or none")
        cpus |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def fleet_lines(run: FleetRun) -> Iterable[str]:
    """The report in short."""
    report, settings = run.report, run.settings
    fleet, lag_ms = report["fleet"], report["scheduling_lag_ms"]
    if not report["valid"]:
        lag = "no question was asked" if lag_ms is None else f"p99 of the lag {lag_ms['p99']:.1f} ms"
        yield (
            f"INVALID: this process could not keep its times ({lag}, at most "
            f"{report['most_scheduling_lag_p99_ms']:.0f} ms may be); nothing below says anything about the server"
        )
    if not settings.pin:
        yield "not pinned: the robots share this machine's CPUs with whatever else runs on it"
    yield (
        f"{settings.endpoint}  {settings.num_robots} robots at {settings.rate_hz:g} Hz  network {settings.network}  "
        f"{fleet['offered_per_s']:.1f} questions a second, {fleet['chunks_per_s']:.1f} chunks; "
        f"{fleet['num_answered']} of {fleet['num_questions']} questions answered"
    )
    most = f" of at most {100 * fleet['most_supplied_share']:.0f} %" if fleet["most_supplied_share"] < 1 else ""
    yield (
        f"control steps supplied {_percent(fleet['supplied_share'])}{most}  underruns {fleet['num_underruns']}  "
        f"robots supplied {fleet['robots_supplied']} of {settings.num_robots}  "
        f"deadline misses {_percent(fleet['deadline_miss_share'])}"
    )
    if fleet["supplied_share_looking_again"] != fleet["supplied_share"]:
        yield (
            f"  {_percent(fleet['supplied_share_looking_again'])} had robots looked again before they sent a question "
            "that had waited"
        )
    for name, span in (("latency", fleet["latency_ms"]), *fleet["latency_split_ms"].items(), ("lag", lag_ms)):
        if span is not None:
            yield f"{name:<12} p50 {span['p50']:8.2f}  p90 {span['p90']:8.2f}  p99 {span['p99']:8.2f}  ms"
    if fleet["chunk_age_ms"] is not None:
        yield f"{'chunk age':<12} p50 {fleet['chunk_age_ms']['p50']:8.2f}  p99 {fleet['chunk_age_ms']['p99']:24.2f}  ms"
    if report["driver_pipe_ms"] is not None:
        yield f"of each latency {report['driver_pipe_ms']:.2f} ms is the way to LeRobot's driver, measured empty"
    messages = {kind: text for robot in run.robots for kind, text in robot.log.messages.items()}
    for kind, count in sorted(fleet["failures"].items()):
        yield f"failed: {kind} {count}, such as: {messages[kind]}"
    yield (
        f"never sent {fleet['num_never_sent']}  reconnections {fleet['num_reconnections']}  "
        f"swaps seen {len(fleet['swaps_seen'])}  stale actions {report['asserted']['num_stale_actions']}"
    )
    yield "  ".join(f"{name} {text}" for text, name in fairness_and_bytes(report))
    for fault in report["faults"]:
        yield (
            f"{fault['kind']:<10} {fault['start_s']:6.1f} to {fault['end_s']:6.1f} s  "
            f"{fault['robots_that_held']} robots held, {_recovery(fault)}"
        )


def _recovery(fault: dict[str, Any]) -> str:
    """A fault that did not happen, or robots that never played again, leave no recovery to speak of."""
    if fault["problem"]:
        return f"NOT CARRIED OUT: {fault['problem']}"
    if fault["robots_never_recovered"]:
        return f"{fault['robots_never_recovered']} of them NEVER AGAIN PLAYED"
    recovery = fault["recovery_s"]
    return f"recovered after {recovery['median']:.2f} s, at most {recovery['max']:.2f}" if recovery else "no hold"


def _description(arguments: argparse.Namespace, identity: dict[str, Any]) -> PolicyDescription:
    if arguments.endpoint in ("premotor", "premotor-unary"):
        if not arguments.policy:
            raise ValueError(f"the endpoint {arguments.endpoint} needs --policy")
        with PolicyClient(arguments.address.split(",")[0], timeout_s=arguments.timeout_s, **identity) as client:
            return client.get_policy(arguments.policy)
    if arguments.description is None:
        raise ValueError(f"the wire of {arguments.endpoint} does not say what the policy expects: give --description")
    return read_description_file(arguments.description)


def _settings(arguments: argparse.Namespace, description: PolicyDescription, identity: dict[str, Any]) -> FleetSettings:
    embodiment = description.embodiment(arguments.embodiment)
    if arguments.cameras is not None:
        embodiment = with_frames(embodiment, *arguments.cameras)
    return FleetSettings(
        endpoint=arguments.endpoint,
        addresses=tuple(arguments.address.split(",")),
        description=description,
        embodiment=embodiment,
        num_robots=arguments.robots,
        rate_hz=arguments.rate_hz,
        jitter=arguments.jitter,
        duration_s=arguments.duration,
        settle_s=arguments.settle,
        control_rate_hz=embodiment.control_rate_hz if arguments.control_rate_hz is None else arguments.control_rate_hz,
        timeout_s=arguments.answer_timeout,
        network=arguments.network,
        image_encoding=arguments.image_encoding,
        with_history=arguments.history == "on",
        num_inference_steps=arguments.num_inference_steps,
        processes=arguments.processes,
        pin=cpu_shares()[0] if arguments.pin is None else arguments.pin,
        seed=arguments.seed,
        lerobot_python=arguments.lerobot_python,
        triton_model=arguments.triton_model,
        **identity,
    )


def _faults(asked: str | None, settings: FleetSettings, commands: FaultCommands) -> tuple[Fault, ...]:
    if asked is None:
        return ()
    return (
        default_faults(settings.duration_s, commands)
        if asked == _DEFAULT_FAULTS
        else read_faults(Path(asked), commands)
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
