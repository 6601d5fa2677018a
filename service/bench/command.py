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
    overhead.add_argument(
        "--size", choices=("tiny", "small"), default="", help="random weights of this size for the checkpoint's bodies"
    )
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
    chunking = bench("real-time-chunking", help="guidance and prefix beside a plain chunk, in process, interleaved")
    add_measurement_flags(chunking, _real_time_chunking)
    chunking.add_argument("--rounds", type=int, default=8, help="blocks of each kind")
    chunking.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    for verb in (overhead, batching, device, against, chunking):
        verb.add_argument("--policy", type=Path, required=True, metavar="DIR", help="a checkpoint")
    for verb in (overhead, batching, against):
        add_model_flags(verb)
    for verb in (device, chunking):
        add_device_flags(verb)


def _overhead(options: argparse.Namespace) -> Measurement:
    from service.bench.overhead import OverheadSettings, format_overhead, measure_overhead

    settings = OverheadSettings(
        checkpoint=options.policy,
        size=options.size,
        embodiment=options.embodiment,
        iterations=options.iterations,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(measure=partial(measure_overhead, settings), format_result=format_overhead)


def _batching(options: argparse.Namespace) -> Measurement:
    from service.bench.batching import BatchingSettings, format_batching, measure_batching

    settings = BatchingSettings(
        checkpoint=options.policy,
        concurrency=options.concurrency,
        rounds=options.rounds,
        block_s=options.block_s,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(measure=partial(measure_batching, settings), format_result=format_batching)


def _device(options: argparse.Namespace) -> Measurement:
    from service.bench.device import DeviceSettings, format_device, measure_device

    settings = DeviceSettings(
        checkpoint=options.policy,
        iterations=options.iterations,
        model=ModelSettings(device=options.device, threads=options.threads),
    )
    return Measurement(measure=partial(measure_device, settings), format_result=format_device)


def _against(options: argparse.Namespace) -> Measurement:
    from service.bench.against import AgainstSettings, format_against, measure_against

    settings = AgainstSettings(
        checkpoint=options.policy,
        other=options.other,
        rounds=options.rounds,
        backend=options.backend,
        model=model_settings(options),
    )
    return Measurement(measure=partial(measure_against, settings), format_result=format_against)


def _real_time_chunking(options: argparse.Namespace) -> Measurement:
    from service.bench.real_time_chunking import (
        RealTimeChunkingSettings,
        format_real_time_chunking,
        measure_real_time_chunking,
    )

    settings = RealTimeChunkingSettings(
        checkpoint=options.policy,
        rounds=options.rounds,
        model=ModelSettings(device=options.device, dtype=options.dtype, threads=options.threads),
    )
    return Measurement(measure=partial(measure_real_time_chunking, settings), format_result=format_real_time_chunking)
