"""`python -m service chaos WHAT`: its flags, one measurement each; exit 1 when one misses its goal.

Imports a measurement when its verb is called, so that no other verb waits for torch.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from service.command_line import HelpFormatter, Measurement, add_measurement_flags, add_model_flags, model_settings


def add_chaos_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    chaos = verbs.add_parser("chaos", help="break a service of one's own under load, and count what robots notice")
    kinds = chaos.add_subparsers(required=True, metavar="WHAT")
    kind = partial(kinds.add_parser, formatter_class=HelpFormatter)
    swap = kind("swap", help="one revision after the other takes over")
    add_measurement_flags(swap, _swap)
    swap.add_argument("--swaps", type=int, default=100, help="how often")
    kill = kind("kill", help="Triton, gateway and database die in turn")
    add_measurement_flags(kill, _kill)
    kill.add_argument("--kills", type=int, default=50, help="in all")
    load = kind("load", help="promote checkpoints that must be refused")
    add_measurement_flags(load, _load)
    canary = kind("canary", help="a split and a broken shadow")
    add_measurement_flags(canary, _canary)
    canary.add_argument("--episodes", type=int, default=200, help="of the split")
    canary.add_argument("--share", type=float, default=0.2, help="of the canary")
    deadline = kind("deadline", help="a model slower than robots wait")
    add_measurement_flags(deadline, _deadline)
    deadline.add_argument("--deadline-s", type=float, default=0.2, help="that robots wait; the model takes twice that")
    deadline.add_argument("--rounds", type=int, default=20, help="in each of which every robot asks once")
    fairness = kind("fairness", help="one robot asks 50 times as fast")
    add_measurement_flags(fairness, _fairness)
    fairness.add_argument("--rate-hz", type=float, default=2.0, help="of each of the others")
    fairness.add_argument("--rounds", type=int, default=8, help="a block without that robot and one with it each")
    fairness.add_argument("--block-s", type=float, default=5.0, help="length of a block")
    fuzz = kind("fuzz", help="malformed requests on both wires")
    add_measurement_flags(fuzz, _fuzz)
    fuzz.add_argument("--requests", type=int, default=100_000, help="half of them on gRPC, half on openpi's wire")
    fuzz.add_argument("--seed", type=int, default=0, help="of what is malformed and how")
    for verb in (swap, kill, load, canary, deadline, fairness, fuzz):
        verb.add_argument("--robots", type=int, default=8, help="that ask meanwhile")
        verb.add_argument(
            "--policy", type=Path, default=Path("checkpoints/tabletop"), metavar="DIR", help="a checkpoint"
        )
        # What `deadline` asks computes nothing.
        if verb is not deadline:
            add_model_flags(verb)
    fuzz.set_defaults(backend="local")


def _served(options: argparse.Namespace) -> dict[str, Any]:
    """What is served, and how."""
    return {"checkpoint": options.policy, "backend": options.backend, "model": model_settings(options)}


def _swap(options: argparse.Namespace) -> Measurement:
    from service.chaos.swap import SwapSettings, format_swaps, measure_swaps, missed_goals

    settings = SwapSettings(**_served(options), swaps=options.swaps, robots=options.robots)
    return Measurement(measure=partial(measure_swaps, settings), format_result=format_swaps, missed_goals=missed_goals)


def _kill(options: argparse.Namespace) -> Measurement:
    from service.chaos.kill import KillSettings, format_kills, measure_kills, missed_goals

    settings = KillSettings(**_served(options), kills=options.kills, robots=options.robots)
    return Measurement(measure=partial(measure_kills, settings), format_result=format_kills, missed_goals=missed_goals)


def _load(options: argparse.Namespace) -> Measurement:
    from service.chaos.load import LoadSettings, format_loads, measure_loads, missed_goals

    settings = LoadSettings(**_served(options), robots=options.robots)
    return Measurement(measure=partial(measure_loads, settings), format_result=format_loads, missed_goals=missed_goals)


def _canary(options: argparse.Namespace) -> Measurement:
    from service.chaos.canary import CanarySettings, format_canary, measure_canary, missed_goals

    settings = CanarySettings(**_served(options), episodes=options.episodes, share=options.share, robots=options.robots)
    return Measurement(
        measure=partial(measure_canary, settings), format_result=format_canary, missed_goals=missed_goals
    )


def _deadline(options: argparse.Namespace) -> Measurement:
    from service.chaos.deadline import DeadlineSettings, format_deadlines, measure_deadlines, missed_goals

    settings = DeadlineSettings(
        checkpoint=options.policy, robots=options.robots, deadline_s=options.deadline_s, rounds=options.rounds
    )
    return Measurement(
        measure=partial(measure_deadlines, settings), format_result=format_deadlines, missed_goals=missed_goals
    )


def _fairness(options: argparse.Namespace) -> Measurement:
    from service.chaos.fairness import FairnessSettings, format_fairness, measure_fairness, missed_goals

    settings = FairnessSettings(
        **_served(options),
        robots=options.robots,
        rate_hz=options.rate_hz,
        rounds=options.rounds,
        block_s=options.block_s,
    )
    return Measurement(
        measure=partial(measure_fairness, settings), format_result=format_fairness, missed_goals=missed_goals
    )


def _fuzz(options: argparse.Namespace) -> Measurement:
    from service.chaos.fuzz import FuzzSettings, format_fuzz, measure_fuzz, missed_goals

    settings = FuzzSettings(
        **_served(options), requests=options.requests, connections=options.robots, seed=options.seed
    )
    return Measurement(measure=partial(measure_fuzz, settings), format_result=format_fuzz, missed_goals=missed_goals)
