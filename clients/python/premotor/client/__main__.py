"""`python -m premotor.client`: ask a gateway by hand, or measure it.

Results go to stdout, everything else to stderr; exit 2 for a call that must be changed, 1 for one that failed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from premotor.client.bench import BenchReport, BenchSettings, run_bench
from premotor.client.channel import DEFAULT_TIMEOUT_S
from premotor.client.chunks import Chunk
from premotor.client.description import Embodiment, Group, PolicyDescription
from premotor.client.errors import FixRequestError, PolicyError
from premotor.client.fleet.command import add_fleet_flags, run_fleet_command
from premotor.client.fleet.compare.command import add_compare_flags, run_compare_command
from premotor.client.identity import TlsOptions
from premotor.client.images import IMAGE_ENCODINGS
from premotor.client.result_file import writable_file, write_json
from premotor.client.sync_client import PolicyClient

_DIGITS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(_join_negative_numbers(sys.argv[1:] if arguments is None else arguments))
    try:
        return parsed.run(parsed)
    except FixRequestError as error:
        print(f"premotor.client: {error}", file=sys.stderr)
        return 2
    except PolicyError as error:
        print(f"premotor.client: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _policies(parsed: argparse.Namespace) -> int:
    with _client(parsed) as client:
        described = (client.get_policy(parsed.policy),) if parsed.policy else client.list_policies()
    for description in described:
        print("\n".join(_description_lines(description)))
    if not described:
        print("no policy is served", file=sys.stderr)
    write_json(parsed.json, [asdict(description) for description in described])
    return 0


def _predict(parsed: argparse.Namespace) -> int:
    with _client(parsed) as client:
        embodiment = client.get_policy(parsed.policy).embodiment(parsed.embodiment)
        chunk = client.predict_chunk(
            policy=parsed.policy,
            revision=parsed.revision,
            robot_id=parsed.robot_id,
            episode_id=parsed.episode_id,
            embodiment=embodiment.name,
            images=dict(parsed.image),
            state=np.array(parsed.state, np.float32),
            instruction=parsed.instruction,
            seed=parsed.seed,
            num_inference_steps=parsed.num_inference_steps,
        )
    print("\n".join(_chunk_lines(chunk, embodiment)))
    write_json(parsed.json, {**asdict(chunk), "actions": chunk.actions.tolist(), "embodiment": embodiment.name})
    return 0


def _bench(parsed: argparse.Namespace) -> int:
    try:
        settings = BenchSettings(
            address=parsed.address,
            policy=parsed.policy,
            embodiment=parsed.embodiment,
            concurrency=parsed.concurrency,
            duration_s=parsed.duration_s,
            warmup_s=parsed.warmup_s,
            timeout_s=parsed.timeout_s,
            num_inference_steps=parsed.num_inference_steps,
            image_encoding=parsed.image_encoding,
            **_identity(parsed),
        )
    except ValueError as error:
        raise FixRequestError(str(error)) from error
    print(
        f"warming up for {settings.warmup_s:g} s, then measuring for {settings.duration_s:g} s "
        f"with {settings.concurrency} robots",
        file=sys.stderr,
    )
    report = run_bench(settings)
    print("\n".join(_report_lines(report)))
    write_json(parsed.json, asdict(report))
    return 0 if report.num_chunks else 1


def _fleet(parsed: argparse.Namespace) -> int:
    try:
        identity = _identity(parsed)
    except ValueError as error:
        raise FixRequestError(str(error)) from error
    return run_fleet_command(parsed, identity)


def _client(parsed: argparse.Namespace) -> PolicyClient:
    try:
        return PolicyClient(parsed.address, timeout_s=parsed.timeout_s, **_identity(parsed))
    except ValueError as error:
        raise FixRequestError(str(error)) from error


def _identity(parsed: argparse.Namespace) -> dict[str, Any]:
    """Who asks. Raises ValueError."""
    tls = None
    if parsed.tls or parsed.tls_ca or parsed.tls_cert or parsed.tls_key:
        tls = TlsOptions(root_certificates=parsed.tls_ca, certificate=parsed.tls_cert, key=parsed.tls_key)
    return {
        "token": parsed.token_file or "",
        "tls": tls,
        "allow_token_without_tls": parsed.allow_token_without_tls,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m premotor.client", description="Ask a premotor gateway.")
    verbs = parser.add_subparsers(required=True, metavar="verb")

    policies = _verb(verbs, "policies", _policies, "list what is served, or describe one policy")
    policies.add_argument("policy", nargs="?", default="", help="describe this one")

    predict = _verb(verbs, "predict", _predict, "ask for one chunk")
    predict.add_argument("--policy", required=True)
    predict.add_argument("--revision", default="", help="pin one revision")
    predict.add_argument("--embodiment", default="", help="may be left out where the policy drives one body")
    predict.add_argument("--robot-id", default="command-line")
    predict.add_argument("--episode-id", default="command-line")
    predict.add_argument(
        "--image", action="append", default=[], type=_image, metavar="CAMERA=FILE", help="a JPEG or PNG file per camera"
    )
    predict.add_argument("--state", required=True, type=_numbers, metavar="N,N,...", help="in the embodiment's units")
    predict.add_argument("--instruction", required=True)
    predict.add_argument("--seed", type=int, help="default: the server draws one")
    predict.add_argument("--num-inference-steps", type=int, help="default: the policy's own")

    bench = _verb(verbs, "bench", _bench, "measure latency and throughput")
    bench.add_argument("--policy", required=True)
    bench.add_argument("--embodiment", default="", help="default: the robots are spread over all bodies of the policy")
    bench.add_argument("--concurrency", type=int, default=8, help="robots that ask at once (default %(default)s)")
    bench.add_argument("--duration-s", type=float, default=10.0, help="measured time (default %(default)s)")
    bench.add_argument("--warmup-s", type=float, default=2.0, help="time before it (default %(default)s)")
    bench.add_argument("--num-inference-steps", type=int, help="default: the policy's own")
    bench.add_argument("--image-encoding", choices=IMAGE_ENCODINGS, default="jpeg", help="default %(default)s")

    add_fleet_flags(_verb(verbs, "fleet", _fleet, "measure what a fleet of simulated robots gets, open loop"))

    summary = "one model behind this service and behind others, side by side"
    compare = verbs.add_parser("compare", help=summary, description=summary)
    compare.set_defaults(run=run_compare_command)
    compare.add_argument("--json", type=writable_file, metavar="FILE", help="also write the result there, as JSON")
    add_compare_flags(compare)
    return parser


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary)
    verb.set_defaults(run=run)
    verb.add_argument("--address", required=True, metavar="HOST:PORT", help="where the gateway listens")
    verb.add_argument(
        "--timeout-s", type=_seconds, default=DEFAULT_TIMEOUT_S, help="of each call (default %(default)s)"
    )
    verb.add_argument("--token-file", type=_token, metavar="FILE", help="a file that holds the token to show")
    verb.add_argument("--tls", action="store_true", help="encrypt, trusting the certificates that gRPC ships with")
    verb.add_argument("--tls-ca", type=_content, metavar="FILE", help="encrypt, trusting these certificates (PEM)")
    verb.add_argument("--tls-cert", type=_content, metavar="FILE", help="a certificate to show (PEM)")
    verb.add_argument("--tls-key", type=_content, metavar="FILE", help="its private key (PEM)")
    verb.add_argument(
        "--allow-token-without-tls", action="store_true", help="send the token unencrypted beyond this machine"
    )
    verb.add_argument("--json", type=writable_file, metavar="FILE", help="also write the result there, as JSON")
    return verb


def _image(text: str) -> tuple[str, bytes]:
    camera, equals, path = text.partition("=")
    if not camera or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} came, expected CAMERA=FILE")
    return camera, _content(path)


def _token(path: str) -> str:
    token = _content(path).decode(errors="replace").strip()
    if not token:
        raise argparse.ArgumentTypeError(f"{path!r} is empty, expected a token")
    return token


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path!r} cannot be read: {error.strerror}") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} came, expected numbers with commas between them") from None


def _seconds(text: str) -> float:
    seconds = _numbers(text)[0]
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} came, expected a positive number of seconds")
    return seconds


def _join_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """argparse takes the `-0.1,0.2` of `--state -0.1,0.2` for an option unless `=` joins them."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--state" and re.match(r"-\.?\d", argument):
            joined[-1] = f"--state={argument}"
        else:
            joined.append(argument)
    return joined


def _description_lines(description: PolicyDescription) -> Iterable[str]:
    variant = f", {description.variant}" if description.variant else ""
    yield f"{description.name}  revision {description.revision}{variant}"
    yield (
        f"  {description.action_horizon} actions a chunk, {description.execution_horizon} played before the next; "
        f"{description.history_steps} steps of history; "
        f"{description.num_inference_steps} inference steps, at most {description.max_inference_steps}"
    )
    for embodiment in description.embodiments:
        yield f"  {embodiment.name}  {embodiment.control_rate_hz:g} Hz"
        cameras = ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in embodiment.cameras)
        yield f"    cameras  {cameras}"
        for part, groups in (("state", embodiment.state), ("action", embodiment.action)):
            dims = ", ".join(_group_text(group) for group in groups)
            yield f"    {part:<7}  {dims}"


def _group_text(group: Group) -> str:
    delta = ", delta" if group.representation == "delta" else ""
    return f"{group.name}[{group.dim}] ({group.unit}{delta})"


def _chunk_lines(chunk: Chunk, embodiment: Embodiment) -> Iterable[str]:
    timing = chunk.timing
    yield f"revision {chunk.revision}  embodiment {embodiment.name}  seed {chunk.seed}  request {chunk.request_id}"
    yield (
        f"round trip {1000 * chunk.round_trip_s:.1f} ms; server {1000 * timing.total_s:.1f} ms: "
        f"decode {1000 * timing.decode_s:.1f}, queue {1000 * timing.queue_s:.1f}, "
        f"inference {1000 * timing.inference_s:.1f}"
    )
    names = [f"{group.name}[{i}]" for group in embodiment.action for i in range(group.dim)]
    widths = [max(len(name), _DIGITS + 6) for name in names]
    yield "step  " + "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    for step, action in enumerate(chunk.actions):
        values = (f"{value:.{_DIGITS}f}".rjust(width) for value, width in zip(action, widths, strict=True))
        yield f"{step:>4}  " + "  ".join(values)


def _report_lines(report: BenchReport) -> Iterable[str]:
    yield (
        f"policy {report.policy}  revision {', '.join(report.revisions) or 'none'}  "
        f"{report.concurrency} robots  {report.duration_s:g} s  {report.image_encoding}"
    )
    for name, share in report.embodiments.items():
        robots = "1 robot" if share.num_robots == 1 else f"{share.num_robots} robots"
        yield f"  {name:<16}  {robots}, {share.request_bytes / 1024:.0f} KiB a request, {share.num_chunks} chunks"
    yield f"{report.num_chunks} chunks, {report.chunks_per_s:.1f} a second; {report.num_errors} errors"
    for name, count in sorted(report.errors.items()):
        yield f"  {name}  {count}"
    if report.spans_ms:
        yield f"{'ms':<18}" + "".join(f"{column:>9}" for column in ("mean", "p50", "p90", "p99", "max"))
    for name, span in report.spans_ms.items():
        yield f"{name:<18}" + "".join(f"{value:>9.2f}" for value in asdict(span).values())


if __name__ == "__main__":
    sys.exit(main())
