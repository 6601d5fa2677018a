"""`python -m premotor.client compare`: flags to settings, and what is printed and kept.

Owns the flags. Does not own the table (table.py).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from pathlib import Path

from premotor.client.errors import FixRequestError
from premotor.client.fleet.command import parse_cpus, parsed
from premotor.client.fleet.compare.rounds import compare
from premotor.client.fleet.compare.settings import PUBLISHED_ROUNDS, WAYS, CompareSettings
from premotor.client.fleet.compare.table import compare_lines
from premotor.client.fleet.endpoint import AskError, MissingPeerError
from premotor.client.fleet.machine import check_cpus, cpu_shares
from premotor.client.fleet.settings import parse_cameras, parse_duration_s
from premotor.client.images import IMAGE_ENCODINGS
from premotor.client.result_file import write_json


def add_compare_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    verb.add_argument("--size", choices=("", "tiny", "small"), default="", help="of random weights, in its place")
    verb.add_argument("--embodiment", default="", help="may be left out where the policy drives one body")
    verb.add_argument("--ways", type=_names, default=WAYS, metavar="NAME,...", help=f"default: {','.join(WAYS)}")
    verb.add_argument("--robots", type=int, default=16, help="of the fleet (default %(default)s)")
    verb.add_argument(
        "--load",
        type=float,
        default=CompareSettings.load,
        help="what all robots ask for, over what the bare forward does one after the other (default %(default)s)",
    )
    verb.add_argument("--rate-hz", type=float, help="of each robot, in the load's place")
    verb.add_argument("--control-rate-hz", type=float, help="default: a chunk lasts two periods")
    verb.add_argument("--cameras", type=parsed(parse_cameras), metavar="NxSIZE", help="default: the embodiment's")
    verb.add_argument("--image-encoding", choices=IMAGE_ENCODINGS, default="raw", help="of premotor's own wire")
    verb.add_argument("--rounds", type=int, default=PUBLISHED_ROUNDS, help="fewer are marked (default %(default)s)")
    verb.add_argument("--block", type=parsed(parse_duration_s), default=4.0, metavar="TIME", help="default 4s")
    verb.add_argument(
        "--robot-counts",
        type=_counts,
        default=CompareSettings.robot_counts,
        metavar="N,...",
        help="tried until one is too many, then those between (default: "
        f"{','.join(map(str, CompareSettings.robot_counts))}; nothing, '', tries none)",
    )
    verb.add_argument(
        "--capacity-rounds", type=int, default=PUBLISHED_ROUNDS, help="fewer are marked (default %(default)s)"
    )
    verb.add_argument("--threads", type=int, default=1, help="of torch in every server (default %(default)s)")
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="default %(default)s")
    verb.add_argument("--max-batch-size", type=int, default=8, help="of ours and of Triton (default %(default)s)")
    verb.add_argument("--backend", choices=("triton", "local"), default="triton", help="of ours")
    verb.add_argument(
        "--pin-client",
        type=parsed(parse_cpus),
        metavar="CPU,...",
        help="robots' CPUs, or none (default: the last quarter where there are two or more)",
    )
    verb.add_argument(
        "--pin-servers",
        type=parsed(parse_cpus),
        metavar="CPU,...",
        help="servers' CPUs, or none (default: the others where there are two or more)",
    )
    verb.add_argument("--peers", type=Path, default=Path("build/peers"), help="made by `make peers`")
    verb.add_argument("--source", type=Path, default=Path(), help="a checkout of premotor (default: here)")
    verb.add_argument("--seed", type=int, default=0)


def run_compare_command(arguments: argparse.Namespace) -> int:
    """0 when all that runs gave the same actions, and every round of it counts; else 1. Raises FixRequestError."""
    robots_share, servers_share = cpu_shares()
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
            load=arguments.load,
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
            client_cpus=robots_share if arguments.pin_client is None else arguments.pin_client,
            server_cpus=servers_share if arguments.pin_servers is None else arguments.pin_servers,
            seed=arguments.seed,
        )
        check_cpus((*settings.client_cpus, *settings.server_cpus))
    except ValueError as error:
        raise FixRequestError(str(error)) from error
    try:
        result = asyncio.run(compare(settings, partial(write_json, arguments.json)))
    except (AskError, MissingPeerError) as error:
        print(f"premotor.client: {error}", file=sys.stderr)
        return 1
    print("\n".join(compare_lines(result)))
    for problem in result["problems"]:
        print(f"premotor.client: {problem}", file=sys.stderr)
    return 1 if result["problems"] else 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} came, expected numbers with commas between them") from None
