"""`python -m service bench WHAT`: its flags, one measurement each.

Imports a measurement when its verb is called, so that no other verb waits for torch.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from service.command_line import (
    HelpFormatter,
    Measurement,
    add_device_flags,
    add_measurement_flags,
    add_model_flags,
    model_settings,
)
from service.model_settings import ModelSettings


def add_bench_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    benches = verbs.add_parser("bench", help="measure the service").add_subparsers(required=True, metavar="WHAT")
    bench = partial(benches.add_parser, formatter_class=HelpFormatter)
    overhead = bench("overhead", help="round trips beside the bare forward, interleaved")
    add_measurement_flags(overhead, _overhead)
    overhead.add_argument("--embodiment", default="", help="the body that asks; the first of the checkpoint's probe")
    overhead.add_argument("--iterations", type=int, default=200, help="calls of each kind")
    batching = bench("batching", help="chunks per second with batching on and off, interleaved")
    add_measurement_flags(batching, _batching)
    batching.add_argument("--concurrency", type=int, default=8, help="robots that ask at the same time")
    batching.add_argument("--rounds", type=int, default=6, help="blocks of each kind")
    batching.add_argument("--block-s", type=float, default=3.0, help="length of a block")
    device = bench("device", help="bare and served, fp32 and bf16, 1 and 8 at a time")
    add_measurement_flags(device, _device)
    device.add_argument("--iterations", type=int, default=200, help="calls of each kind")
    against = bench("against", help="this service beside that of another checkout, interleaved")
    add_measurement_flags(against, _against)
    against.add_argument("--other", type=Path, required=True, metavar="DIR", help="the other checkout")
    against.add_argument("--rounds", type=int, default=12, help="of each side")
    parts = bench("request-parts", help="history, guidance and prefix beside a chunk without them, in process")
    add_measurement_flags(parts, _request_parts)
    parts.add_argument("--rounds", type=int, default=8, help="blocks of each kind")
    parts.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    neighbour = bench("neighbour", help="a round trip beside one busy neighbour over one without, interleaved")
    add_measurement_flags(neighbour, _neighbour)
    neighbour.add_argument("--embodiment", default="", help="the body that asks; the first of the checkpoint's probe")
    neighbour.add_argument("--rounds", type=int, default=8, help="blocks of each kind")
    neighbour.add_argument("--calls", type=int, default=20, help="of a block")
    wire = bench("wire", help="a gateway's CPU a request beside a bare gRPC echo of the same bytes, interleaved")
    add_measurement_flags(wire, _wire)
    wire.add_argument("--rounds", type=int, default=20, help="of each side")
    wire.add_argument("--calls", type=int, default=200, help="of a round")
    for verb in (overhead, batching, device, against, parts, wire, neighbour):
        verb.add_argument("--policy", type=Path, required=True, metavar="DIR", help="a checkpoint")
    for verb in (overhead, parts, neighbour):
        verb.add_argument(
            "--size",
            choices=("tiny", "small"),
            default="",
            help="random weights of this size for the checkpoint's bodies",
        )
    for verb in (overhead, batching, against, neighbour):
        add_model_flags(verb)
    for verb in (device, parts):
        add_device_flags(verb)


def _overhead(options: argparse.Namespace) -> Measurement:
    from service.bench.overhead import OverheadSettings, format_overhead, measure_overhead, missed_goals

    settings = OverheadSettings(
        checkpoint=options.policy,
        size=options.size,
        embodiment=options.embodiment,
        iterations=options.iterations,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(
        measure=partial(measure_overhead, settings), format_result=format_overhead, missed_goals=missed_goals
    )


def _batching(options: argparse.Namespace) -> Measurement:
    from service.bench.batching import BatchingSettings, format_batching, measure_batching, missed_goals

    settings = BatchingSettings(
        checkpoint=options.policy,
        concurrency=options.concurrency,
        rounds=options.rounds,
        block_s=options.block_s,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(
        measure=partial(measure_batching, settings), format_result=format_batching, missed_goals=missed_goals
    )


def _device(options: argparse.Namespace) -> Measurement:
    from service.bench.device import DeviceSettings, format_device, measure_device

    settings = DeviceSettings(
        checkpoint=options.policy,
        iterations=options.iterations,
        model=ModelSettings(device=options.device, threads=options.threads),
    )
    return Measurement(measure=partial(measure_device, settings), format_result=format_device)


def _against(options: argparse.Namespace) -> Measurement:
    from service.bench.against import AgainstSettings, format_against, measure_against, missed_goals

    settings = AgainstSettings(
        checkpoint=options.policy,
        other=options.other,
        rounds=options.rounds,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(
        measure=partial(measure_against, settings), format_result=format_against, missed_goals=missed_goals
    )


def _request_parts(options: argparse.Namespace) -> Measurement:
    from service.bench.request_parts import RequestPartsSettings, format_request_parts, measure_request_parts

    settings = RequestPartsSettings(
        checkpoint=options.policy,
        size=options.size,
        rounds=options.rounds,
        model=ModelSettings(device=options.device, dtype=options.dtype, threads=options.threads),
    )
    return Measurement(measure=partial(measure_request_parts, settings), format_result=format_request_parts)


def _neighbour(options: argparse.Namespace) -> Measurement:
    from service.bench.neighbour import NeighbourSettings, format_neighbour, measure_neighbour, missed_goals

    settings = NeighbourSettings(
        checkpoint=options.policy,
        size=options.size,
        embodiment=options.embodiment,
        rounds=options.rounds,
        calls_per_block=options.calls,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(
        measure=partial(measure_neighbour, settings), format_result=format_neighbour, missed_goals=missed_goals
    )


def _wire(options: argparse.Namespace) -> Measurement:
    from service.bench.wire import WireSettings, format_wire, measure_wire

    settings = WireSettings(checkpoint=options.policy, rounds=options.rounds, calls_per_round=options.calls)
    return Measurement(measure=partial(measure_wire, settings), format_result=format_wire)
