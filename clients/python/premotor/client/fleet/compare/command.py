"""`python -m premotor.client compare`: flags to settings, and the result as a table.

Owns the flags and the table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from premotor.client.errors import FixRequestError
from premotor.client.fleet.command import parse_cpus, parsed
from premotor.client.fleet.compare.rounds import compare
from premotor.client.fleet.compare.settings import WAYS, CompareSettings
from premotor.client.fleet.endpoint import AskError, MissingPeerError
from premotor.client.fleet.settings import parse_cameras, parse_duration_s
from premotor.client.images import IMAGE_ENCODINGS


def add_compare_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    verb.add_argument("--size", choices=("", "tiny", "small"), default="", help="of random weights, in its place")
    verb.add_argument("--embodiment", default="", help="may be left out where the policy drives one body")
    verb.add_argument("--ways", type=_names, default=WAYS, metavar="NAME,...", help=f"default: {','.join(WAYS)}")
    verb.add_argument("--robots", type=int, default=16, help="of the fleet (default %(default)s)")
    verb.add_argument("--rate-hz", type=float, default=2.0, help="default %(default)s")
    verb.add_argument("--control-rate-hz", type=float, help="default: a chunk lasts two periods")
    verb.add_argument("--cameras", type=parsed(parse_cameras), metavar="NxSIZE", help="default: the embodiment's")
    verb.add_argument("--image-encoding", choices=IMAGE_ENCODINGS, default="raw", help="of premotor's own wire")
    verb.add_argument("--rounds", type=int, default=8, help="default %(default)s")
    verb.add_argument("--block", type=parsed(parse_duration_s), default=4.0, metavar="TIME", help="default 4s")
    verb.add_argument("--robot-counts", type=_counts, default=CompareSettings.robot_counts, metavar="N,...")
    verb.add_argument("--capacity-rounds", type=int, default=3, help="default %(default)s")
    verb.add_argument("--threads", type=int, default=1, help="of torch in every server (default %(default)s)")
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="default %(default)s")
    verb.add_argument("--max-batch-size", type=int, default=8, help="of ours and of Triton (default %(default)s)")
    verb.add_argument("--backend", choices=("triton", "local"), default="triton", help="of ours")
    verb.add_argument("--pin-client", type=parsed(parse_cpus), default=(), metavar="CPU,...", help="robots' CPUs")
    verb.add_argument("--pin-servers", type=parsed(parse_cpus), default=(), metavar="CPU,...", help="servers' CPUs")
    verb.add_argument("--peers", type=Path, default=Path("build/peers"), help="made by `make peers`")
    verb.add_argument("--source", type=Path, default=Path(), help="a checkout of premotor (default: here)")
    verb.add_argument("--seed", type=int, default=0)


def run_compare_command(arguments: argparse.Namespace) -> int:
    """0 when all that runs gave the same actions, else 1. Raises FixRequestError."""
    try:
        settings = CompareSettings(
            checkpoint=arguments.checkpoint,
            size=arguments.size,
            embodiment=arguments.embodiment,
            source=arguments.source.resolve(),
            python=sys.executable,
            peers=arguments.peers.absolute(),
            ways=arguments.ways,
            num_robots=arguments.robots,
            rate_hz=arguments.rate_hz,
            control_rate_hz=arguments.control_rate_hz,
            cameras=arguments.cameras,
            image_encoding=arguments.image_encoding,
            rounds=arguments.rounds,
            block_s=arguments.block,
            robot_counts=arguments.robot_counts,
            capacity_rounds=arguments.capacity_rounds,
            threads=arguments.threads,
            dtype=arguments.dtype,
            max_batch_size=arguments.max_batch_size,
            backend=arguments.backend,
            client_cpus=arguments.pin_client,
            server_cpus=arguments.pin_servers,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise FixRequestError(str(error)) from error
    try:
        result = asyncio.run(compare(settings))
    except (AskError, MissingPeerError) as error:
        print(f"premotor.client: {error}", file=sys.stderr)
        return 1
    print("\n".join(compare_lines(result)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(way["actions_equal"] for way in result["latency"]["ways"].values()) else 1


def compare_lines(result: dict[str, Any]) -> Iterable[str]:
    """The result as tables; what is missing is said first."""
    for way, reason in result["missing"].items():
        yield f"MISSING {way}: {reason.splitlines()[0]}"
    yield f"one robot   {'p50 ms':>8} {'over bare (95 %)':>24} {'server CPU us':>14} {'actions off by':>15}"
    for way, found in result["latency"]["ways"].items():
        yield (
            f"{way:<15}{_median(found['p50_ms']):>5} {_interval(found['over_bare']):>24} "
            f"{_median(found['server_cpu_us_per_request'], 0):>14} {found['max_action_difference']:>15.1e}"
        )
    fleet = result["fleet"]
    yield (
        f"{fleet['num_robots']} robots   {'chunks/s':>9} {'supplied %':>10} {'p50 ms':>8} {'p99 ms':>8} "
        f"{'CPU us a chunk':>14} {'chunks/s over openpi':>24} {'over lerobot':>24}"
    )
    for way, found in fleet["ways"].items():
        over = found["over"]
        invalid = f"  {found['invalid_rounds']} rounds INVALID" if found["invalid_rounds"] else ""
        yield (
            f"{way:<15}{_median(found['chunks_per_s']):>5} {_median(found['supplied_share'], 1, 100):>10} "
            f"{_median(found['latency_p50_ms'], 1):>8} {_median(found['latency_p99_ms'], 1):>8} "
            f"{_median(found['server_cpu_us_per_chunk'], 0):>14} "
            f"{_interval(over.get('openpi', {}).get('chunks_per_s')):>24} "
            f"{_interval(over.get('lerobot', {}).get('chunks_per_s')):>24}{invalid}"
        )
    if result["capacity"] is not None:
        yield f"robots with {100 * result['capacity']['supplied_goal']:.0f} % of their control steps supplied"
        for way, found in result["capacity"]["ways"].items():
            yield f"{way:<15}{_median(found['robots'], 0):>5}   over openpi {_interval(found['over'].get('openpi'))}"


def _median(interval: dict[str, Any] | None, digits: int = 2, factor: float = 1.0) -> str:
    return "-" if interval is None else f"{factor * interval['median']:.{digits}f}"


def _interval(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return "-"
    return f"{interval['median']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} came, expected numbers with commas between them") from None
