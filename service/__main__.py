"""`python -m service`: serve policies, check a checkpoint, hand out tokens, measure the service.

Owns flags and exit statuses: 2 for a wrong call, 1 for a failed one. Results go to stdout, logs to stderr. Imports a
verb's module when the verb is called, so that `serve` does not wait for torch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from service.logs import configure_logging
from service.model_settings import ModelSettings
from service.token_command import add_token_verbs

if TYPE_CHECKING:
    from service.credentials import ServerTls
    from service.observability.tracing import Tracing
    from service.openpi import ObservationMap
    from service.serve import ServeConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. argparse exits with 2 by itself when a flag is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    configure_logging(logging.getLevelNamesMapping()[options.log_level.upper()])
    try:
        run = options.verb(options)
    except ValueError as error:
        parser.error(str(error))
    return run()


def _serve(options: argparse.Namespace) -> Callable[[], int]:
    from service.serve import ServeConfig

    config = ServeConfig(
        policies=tuple(options.policy or ()),
        backend=options.backend,
        host=options.host,
        port=options.port,
        admin_port=options.admin_port,
        openpi_port=options.openpi_port,
        openpi_map=options.openpi_map,
        registry=options.registry,
        state=options.state,
        store=options.store,
        memory_budget_bytes=options.memory_budget_bytes,
        triton_address=options.triton_address,
        triton_control_address=options.triton_control_address,
        triton_repository=options.triton_repository,
        tls=_tls(options),
        insecure_listen=options.insecure_listen,
        tracing=_tracing(options),
        otlp_http_url=options.otlp_http_url,
        drain_s=options.drain_s,
        model=_model_settings(options, batching=options.batching == "on"),
    )
    return partial(_run_serve, config)


def _run_serve(config: ServeConfig) -> int:
    from service.backend import BackendError
    from service.credentials.exposure import ExposedError
    from service.openpi import ObservationMapError
    from service.registry import RegistryUnavailableError
    from service.revision import RevisionError
    from service.serve import serve
    from service.triton.installation import TritonNotFoundError
    from service.triton.server import TritonStartError

    try:
        asyncio.run(serve(config))
    except ExposedError as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 2
    except (
        RevisionError,
        TritonNotFoundError,
        TritonStartError,
        BackendError,
        RegistryUnavailableError,
        ObservationMapError,
        OSError,
    ) as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


def _tls(options: argparse.Namespace) -> ServerTls | None:
    from service.credentials import TlsFiles, read_tls

    if options.tls_cert is None and options.tls_key is None and options.tls_client_ca is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ValueError("--tls-cert and --tls-key come together, and --tls-client-ca with them")
    return read_tls(TlsFiles(certificate=options.tls_cert, key=options.tls_key, client_ca=options.tls_client_ca))


def _tracing(options: argparse.Namespace) -> Tracing | None:
    from service.observability.tracing import otlp_tracing

    return otlp_tracing(options.otlp_endpoint) if options.otlp_endpoint else None


def _check(options: argparse.Namespace) -> Callable[[], int]:
    return partial(_run_check, options.directory, options.device, options.dtype)


def _run_check(directory: Path, device: str, dtype: Literal["fp32", "bf16"]) -> int:
    from policy.checkpoint import CheckpointError
    from policy.policy import Policy
    from service.revision import RevisionError, read_revision

    try:
        revision = read_revision(directory, policy="checked")
        policy = Policy.from_checkpoint(directory, device=device, dtype=dtype)
    except (RevisionError, CheckpointError) as error:
        print(f"{directory}: {error}", file=sys.stderr)
        return 1
    result = {
        "revision": revision.revision,
        "variant": revision.description.variant,
        "embodiments": list(policy.embodiments),
        "probe": "passed",
    }
    print(json.dumps(result))
    return 0


def _bench_overhead(options: argparse.Namespace) -> Callable[[], int]:
    from service.bench.overhead import OverheadSettings, format_overhead, measure_overhead

    settings = OverheadSettings(
        checkpoint=options.policy,
        size=options.size,
        embodiment=options.embodiment,
        iterations=options.iterations,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_overhead, settings), format_overhead, options.json)


def _bench_batching(options: argparse.Namespace) -> Callable[[], int]:
    from service.bench.batching import BatchingSettings, format_batching, measure_batching

    settings = BatchingSettings(
        checkpoint=options.policy,
        concurrency=options.concurrency,
        rounds=options.rounds,
        block_s=options.block_s,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_batching, settings), format_batching, options.json)


def _chaos_swap(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.swap import SwapSettings, format_swaps, measure_swaps

    settings = SwapSettings(
        checkpoint=options.policy,
        swaps=options.swaps,
        robots=options.robots,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_swaps, settings), format_swaps, options.json)


def _chaos_load(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.load import LoadSettings, format_loads, measure_loads

    settings = LoadSettings(
        checkpoint=options.policy,
        robots=options.robots,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_loads, settings), format_loads, options.json)


def _chaos_canary(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.canary import CanarySettings, format_canary, measure_canary

    settings = CanarySettings(
        checkpoint=options.policy,
        episodes=options.episodes,
        share=options.share,
        robots=options.robots,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_canary, settings), format_canary, options.json)


def _chaos_kill(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.kill import KillSettings, format_kills, measure_kills

    settings = KillSettings(
        checkpoint=options.policy,
        kills=options.kills,
        robots=options.robots,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_kills, settings), format_kills, options.json)


def _bench_against(options: argparse.Namespace) -> Callable[[], int]:
    from service.bench.against import AgainstSettings, format_against, measure_against

    settings = AgainstSettings(
        checkpoint=options.policy,
        other=options.other,
        rounds=options.rounds,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_against, settings), format_against, options.json)


def _chaos_deadline(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.deadline import DeadlineSettings, format_deadlines, measure_deadlines

    settings = DeadlineSettings(
        checkpoint=options.policy, robots=options.robots, deadline_s=options.deadline_s, rounds=options.rounds
    )
    return partial(_report, partial(measure_deadlines, settings), format_deadlines, options.json)


def _chaos_fairness(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.fairness import FairnessSettings, format_fairness, measure_fairness

    settings = FairnessSettings(
        checkpoint=options.policy,
        robots=options.robots,
        rate_hz=options.rate_hz,
        rounds=options.rounds,
        block_s=options.block_s,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_fairness, settings), format_fairness, options.json)


def _chaos_fuzz(options: argparse.Namespace) -> Callable[[], int]:
    from service.chaos.fuzz import FuzzSettings, format_fuzz, measure_fuzz

    settings = FuzzSettings(
        checkpoint=options.policy,
        requests=options.requests,
        connections=options.robots,
        seed=options.seed,
        backend=options.backend,
        model=_model_settings(options, batching=True),
    )
    return partial(_report, partial(measure_fuzz, settings), format_fuzz, options.json)


def _bench_device(options: argparse.Namespace) -> Callable[[], int]:
    from service.bench.device import DeviceSettings, format_device, measure_device

    settings = DeviceSettings(
        checkpoint=options.policy,
        iterations=options.iterations,
        model=ModelSettings(device=options.device, threads=options.threads),
    )
    return partial(_report, partial(measure_device, settings), format_device, options.json)


def _report(
    measure: Callable[[], dict[str, Any]], format_result: Callable[[dict[str, Any]], str], json_path: Path | None
) -> int:
    from service.bench.overhead import DeviceMissingError
    from service.bench.served import ServiceStartError
    from service.ctl.admin_client import AdminError
    from service.revision import RevisionError

    try:
        result = measure()
    except (RevisionError, ServiceStartError, DeviceMissingError, AdminError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 1
    print(format_result(result))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _model_settings(options: argparse.Namespace, *, batching: bool) -> ModelSettings:
    return ModelSettings(
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        batching=batching,
        max_batch_size=options.max_batch_size,
        max_queue_delay_us=options.max_queue_delay_us,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve premotor policies.")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_serve(verbs)
    _add_ctl(verbs)
    _add_chaos(verbs)
    _add_check(verbs)
    add_token_verbs(verbs, _HelpFormatter)
    _add_bench(verbs)
    return parser


def _add_serve(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("serve", help="serve checkpoints until SIGTERM", formatter_class=_HelpFormatter)
    verb.set_defaults(verb=_serve)
    verb.add_argument(
        "--policy",
        action="append",
        type=_named_directory,
        metavar="NAME=DIR",
        help="a policy and its checkpoint, to be served unless the registry serves another of it; may come again",
    )
    verb.add_argument("--registry", default="", metavar="URL", help="sqlite:///FILE, or postgresql://... for a fleet")
    verb.add_argument("--state", type=Path, metavar="DIR", help="keeps the registry and downloads across restarts")
    verb.add_argument("--memory-budget-bytes", type=int, metavar="N", help="of all models together")
    verb.add_argument("--store", type=Path, metavar="DIR", help="checkpoints below it can be registered while serving")
    verb.add_argument("--host", default="127.0.0.1", help="address of the gateway and the admin plane")
    verb.add_argument("--port", type=_port, default=50051, help="gRPC; 0 picks a free one")
    verb.add_argument("--admin-port", type=_port, default=8080, help="HTTP; 0 picks a free one")
    verb.add_argument("--openpi-port", type=_port, help="openpi's websocket wire; 0 picks a free one")
    verb.add_argument(
        "--openpi-map",
        type=_observation_map,
        metavar="FILE",
        help="JSON: which of its robots' keys is which input of which policy; without it they use this service's names",
    )
    verb.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM, for all that listens")
    verb.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key in PEM")
    verb.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="demand certificates of this CA (mTLS)")
    verb.add_argument(
        "--insecure-listen",
        action="store_true",
        help="listen beyond loopback although there is no TLS or no token, for anybody to use or to read",
    )
    verb.add_argument(
        "--otlp-endpoint",
        default="",
        metavar="URL",
        help="send traces of requests to this OpenTelemetry collector by gRPC, such as http://127.0.0.1:4317",
    )
    verb.add_argument(
        "--otlp-http-url",
        default="",
        metavar="URL",
        help="the same collector by HTTP, such as http://127.0.0.1:4318/v1/traces, for Triton, which speaks that alone",
    )
    verb.add_argument("--batching", choices=("on", "off"), default="on", help="join requests of several robots")
    verb.add_argument("--drain-s", type=float, default=10.0, help="time that requests in flight get after SIGTERM")
    verb.add_argument(
        "--triton-address",
        metavar="HOST:PORT",
        help="HTTP address of a tritonserver in explicit model control mode, to use instead of starting one",
    )
    verb.add_argument("--triton-control-address", metavar="HOST:PORT", help="gRPC address of the same")
    verb.add_argument(
        "--triton-repository", type=Path, metavar="DIR", help="its model repository, as seen from this machine"
    )
    _add_model_flags(verb)


def _add_chaos(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    chaos = verbs.add_parser("chaos", help="break a service of one's own under load, and count what robots notice")
    kinds = chaos.add_subparsers(required=True, metavar="WHAT")
    swap = kinds.add_parser("swap", help="one revision after the other takes over", formatter_class=_HelpFormatter)
    swap.set_defaults(verb=_chaos_swap)
    swap.add_argument("--swaps", type=int, default=100, help="how often")
    kill = kinds.add_parser("kill", help="Triton, gateway and database die in turn", formatter_class=_HelpFormatter)
    kill.set_defaults(verb=_chaos_kill)
    kill.add_argument("--kills", type=int, default=50, help="in all")
    load = kinds.add_parser("load", help="promote checkpoints that must be refused", formatter_class=_HelpFormatter)
    load.set_defaults(verb=_chaos_load)
    canary = kinds.add_parser("canary", help="a split and a broken shadow", formatter_class=_HelpFormatter)
    canary.set_defaults(verb=_chaos_canary)
    canary.add_argument("--episodes", type=int, default=200, help="of the split")
    canary.add_argument("--share", type=float, default=0.2, help="of the canary")
    deadline = kinds.add_parser("deadline", help="a model slower than robots wait", formatter_class=_HelpFormatter)
    deadline.set_defaults(verb=_chaos_deadline)
    deadline.add_argument("--deadline-s", type=float, default=0.2, help="that robots wait; the model takes twice that")
    deadline.add_argument("--rounds", type=int, default=20, help="in each of which every robot asks once")
    fairness = kinds.add_parser("fairness", help="one robot asks 50 times as fast", formatter_class=_HelpFormatter)
    fairness.set_defaults(verb=_chaos_fairness)
    fairness.add_argument("--rate-hz", type=float, default=2.0, help="of each of the others")
    fairness.add_argument("--rounds", type=int, default=8, help="a block without that robot and one with it each")
    fairness.add_argument("--block-s", type=float, default=5.0, help="length of a block")
    fuzz = kinds.add_parser("fuzz", help="malformed requests on both wires", formatter_class=_HelpFormatter)
    fuzz.set_defaults(verb=_chaos_fuzz)
    fuzz.add_argument("--requests", type=int, default=100_000, help="half of them on gRPC, half on openpi's wire")
    fuzz.add_argument("--seed", type=int, default=0, help="of what is malformed and how")
    for verb in (swap, kill, load, canary, deadline, fairness, fuzz):
        verb.add_argument("--robots", type=int, default=8, help="that ask meanwhile")
        verb.add_argument(
            "--policy", type=Path, default=Path("checkpoints/tabletop"), metavar="DIR", help="a checkpoint"
        )
        verb.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
        # What `deadline` asks computes nothing.
        if verb is not deadline:
            _add_model_flags(verb)
    fuzz.set_defaults(backend="local")


def _add_ctl(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from service.ctl.command import add_arguments, run

    verb = verbs.add_parser("ctl", help="operate a running service: promote, roll back, split, shadow, ...")
    verb.set_defaults(verb=lambda options: partial(run, options))
    add_arguments(verb)


def _add_check(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("check", help="verify a checkpoint and its probe", formatter_class=_HelpFormatter)
    verb.set_defaults(verb=_check)
    verb.add_argument("directory", type=Path)
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")


def _add_bench(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    benches = verbs.add_parser("bench", help="measure the service").add_subparsers(required=True, metavar="WHAT")
    overhead = benches.add_parser(
        "overhead", help="round trips beside the bare forward, interleaved", formatter_class=_HelpFormatter
    )
    overhead.set_defaults(verb=_bench_overhead)
    overhead.add_argument("--embodiment", default="", help="the body that asks; the first of the checkpoint's probe")
    overhead.add_argument("--iterations", type=int, default=200, help="calls of each kind")
    overhead.add_argument(
        "--size", choices=("tiny", "small"), default="", help="random weights of this size for the checkpoint's bodies"
    )
    batching = benches.add_parser(
        "batching", help="chunks per second with batching on and off, interleaved", formatter_class=_HelpFormatter
    )
    batching.set_defaults(verb=_bench_batching)
    batching.add_argument("--concurrency", type=int, default=8, help="robots that ask at the same time")
    batching.add_argument("--rounds", type=int, default=6, help="blocks of each kind")
    batching.add_argument("--block-s", type=float, default=3.0, help="length of a block")
    device = benches.add_parser(
        "device", help="bare and served, fp32 and bf16, 1 and 8 at a time", formatter_class=_HelpFormatter
    )
    device.set_defaults(verb=_bench_device)
    device.add_argument("--iterations", type=int, default=200, help="calls of each kind")
    against = benches.add_parser(
        "against", help="this service beside that of another checkout, interleaved", formatter_class=_HelpFormatter
    )
    against.set_defaults(verb=_bench_against)
    against.add_argument("--other", type=Path, required=True, metavar="DIR", help="the other checkout")
    against.add_argument("--rounds", type=int, default=12, help="of each side")
    for verb in (overhead, batching, device, against):
        verb.add_argument("--policy", type=Path, required=True, metavar="DIR", help="a checkpoint")
        verb.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    for verb in (overhead, batching, against):
        _add_model_flags(verb)
    _add_device_flags(device)


def _add_model_flags(verb: argparse.ArgumentParser) -> None:
    defaults = ModelSettings()
    verb.add_argument("--backend", choices=("triton", "local"), default="triton", help="where chunks are computed")
    _add_device_flags(verb)
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default=defaults.dtype)
    verb.add_argument("--max-batch-size", type=int, default=defaults.max_batch_size)
    verb.add_argument(
        "--max-queue-delay-us",
        type=int,
        default=defaults.max_queue_delay_us,
        help="hold a request back this long for company",
    )


def _add_device_flags(verb: argparse.ArgumentParser) -> None:
    defaults = ModelSettings()
    verb.add_argument("--device", choices=("cpu", "cuda"), default=defaults.device)
    verb.add_argument("--threads", type=int, default=defaults.threads, help="torch threads per model")


def _named_directory(text: str) -> tuple[str, Path]:
    name, separator, directory = text.partition("=")
    if not (name and separator and directory):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR, for example tabletop=checkpoints/tabletop")
    return name, Path(directory)


def _observation_map(text: str) -> ObservationMap:
    from service.openpi import ObservationMapError, read_observation_map

    try:
        return read_observation_map(Path(text))
    except (ObservationMapError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, expected 0 to 65535")
    return int(text)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, but no "(default: None)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.required:
            return action.help
        return super()._get_help_string(action)


if __name__ == "__main__":
    sys.exit(main())
