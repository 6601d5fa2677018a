"""`python -m service serve`: its flags, and what its ending means.

Owns the flags of serving: 2 for a wrong call, 1 for a service that could not start. Does not own serving (serve.py),
which is imported when the verb is called.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.command_line import HelpFormatter, add_model_flags, model_settings

if TYPE_CHECKING:
    from service.credentials import ServerTls
    from service.observability.tracing import Tracing
    from service.openpi import ObservationMap
    from service.serve import ServeConfig

_MAX_PORT = 65_535


def add_serve_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Sets `verb`, which makes of the parsed flags what runs; ValueError for flags that do not go together."""
    verb = verbs.add_parser("serve", help="serve checkpoints until SIGTERM", formatter_class=HelpFormatter)
    verb.set_defaults(verb=_serve)
    verb.add_argument(
        "--policy",
        action="append",
        type=_named_directory,
        metavar="NAME=DIR",
        help="a policy and its checkpoint, to be served where the registry never served it; may come again",
    )
    verb.add_argument("--registry", default="", metavar="URL", help="sqlite:///FILE, or postgresql://... for a fleet")
    verb.add_argument("--state", type=Path, metavar="DIR", help="keeps the registry and downloads across restarts")
    verb.add_argument(
        "--fence",
        choices=("auto", "on", "off"),
        default="auto",
        help="a gateway that is cut off from the registry for 8 s begins no more episodes; auto: while it has company",
    )
    verb.add_argument("--memory-budget-bytes", type=int, metavar="N", help="of all models together")
    verb.add_argument("--store", type=Path, metavar="DIR", help="checkpoints below it can be registered while serving")
    verb.add_argument("--host", default="127.0.0.1", help="address of the gateway and the admin plane")
    verb.add_argument("--port", type=_port, default=50051, help="gRPC; 0 picks a free one")
    verb.add_argument("--admin-port", type=_port, default=8080, help="HTTP; 0 picks a free one")
    verb.add_argument(
        "--gateways",
        type=int,
        default=1,
        metavar="N",
        help="processes that answer robots on one port, when one core is too few; each connection stays with one",
    )
    verb.add_argument("--openpi-port", type=_port, help="openpi's websocket wire; 0 picks a free one")
    verb.add_argument(
        "--openpi-map",
        type=_observation_map,
        metavar="FILE",
        help="JSON: which of its robots' keys is which input of which policy; without it they use this service's names",
    )
    verb.add_argument(
        "--openpi-policy",
        default="",
        metavar="NAME",
        help="whom its robots ask that name none by /policies/NAME or by a key for one policy; without it the map's, "
        "or else the policy that served first",
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
        "--load-timeout-s",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="time that a revision gets to be ready on every gateway",
    )
    verb.add_argument(
        "--idle-probe-s",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="a revision in Triton that nobody has asked for this long is probed, so that a death is noticed before a "
        "robot does (default: %(default)g)",
    )
    verb.add_argument(
        "--drain-timeout-s",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="time that episodes in progress get to end on a revision that another took the place of",
    )
    verb.add_argument(
        "--episode-idle-s",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a robot that is silent for so long has ended its episode: what drains waits for it no more",
    )
    verb.add_argument(
        "--triton-address",
        type=_triton_address,
        metavar="HOST:PORT",
        help="HTTP address of a tritonserver in explicit model control mode, to use instead of starting one",
    )
    verb.add_argument(
        "--triton-control-address", type=_triton_address, metavar="HOST:PORT", help="gRPC address of the same"
    )
    verb.add_argument(
        "--triton-repository", type=Path, metavar="DIR", help="its model repository, as seen from this machine"
    )
    verb.add_argument(
        "--triton-control-key",
        type=_control_key,
        metavar="FILE",
        help="holds KEY=VALUE of its --grpc-restricted-protocol=model-repository:KEY=VALUE",
    )
    add_model_flags(verb)


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
        openpi_policy=options.openpi_policy,
        registry=options.registry,
        state=options.state,
        store=options.store,
        fence=options.fence,
        memory_budget_bytes=options.memory_budget_bytes,
        triton_address=options.triton_address,
        triton_control_address=options.triton_control_address,
        triton_repository=options.triton_repository,
        triton_control_key=options.triton_control_key or "",
        tls=_tls(options),
        insecure_listen=options.insecure_listen,
        tracing=_tracing(options),
        otlp_http_url=options.otlp_http_url,
        drain_s=options.drain_s,
        load_timeout_s=options.load_timeout_s,
        idle_probe_s=options.idle_probe_s,
        drain_timeout_s=options.drain_timeout_s,
        episode_idle_s=options.episode_idle_s,
        model=replace(model_settings(options, batching=options.batching == "on"), num_gateways=options.gateways),
    )
    return partial(_run_serve, config)


def _run_serve(config: ServeConfig) -> int:
    from service.backend import BackendError
    from service.credentials.exposure import ExposedError
    from service.errors import ConflictError
    from service.processes.supervision import FurtherGatewayError
    from service.registry import RegistryUnavailableError, WrongRegistryError
    from service.revision import RevisionError
    from service.serve import serve
    from service.triton.installation import TritonNotFoundError
    from service.triton.server import TritonStartError

    try:
        asyncio.run(serve(config))
    except (ExposedError, WrongRegistryError) as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 2
    except (
        RevisionError,
        ConflictError,
        TritonNotFoundError,
        TritonStartError,
        BackendError,
        RegistryUnavailableError,
        FurtherGatewayError,
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


def _named_directory(text: str) -> tuple[str, Path]:
    from service.policies import check_policy_name

    name, separator, directory = text.partition("=")
    if not (name and separator and directory):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR, for example tabletop=checkpoints/tabletop")
    try:
        check_policy_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a policy {error}") from None
    return name, Path(directory)


def _observation_map(text: str) -> ObservationMap:
    from service.openpi import ObservationMapError, read_observation_map

    try:
        return read_observation_map(Path(text))
    except (ObservationMapError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _triton_address(text: str) -> str:
    """Also "unix:PATH", for a Triton on this machine."""
    from service.triton.http import is_unix

    if is_unix(text):
        return text
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 1 <= int(port) <= _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, for example localhost:8000")
    return text


def _control_key(text: str) -> str:
    """Out of a file, for a command line is anybody's to read."""
    try:
        found = Path(text).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not re.fullmatch(r"[a-z0-9_.-]+=[!-~]+", found):
        raise argparse.ArgumentTypeError(f"{text} does not hold KEY=VALUE, KEY in lower case")
    return found


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, expected 0 to {_MAX_PORT}")
    return int(text)
