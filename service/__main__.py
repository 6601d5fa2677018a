"""`python -m service`: serve policies, check a checkpoint, hand out tokens, operate, measure and break the service.

Owns the list of verbs and exit status 2 for a wrong call; 1 is a failed one's. Results go to stdout, logs to stderr.
Each verb's module owns its flags and imports what it needs when it is called, so that `serve` does not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from service.bench.command import add_bench_verbs
from service.chaos.command import add_chaos_verbs
from service.command_line import HelpFormatter
from service.ctl import command as ctl
from service.logs import configure_logging
from service.serve_command import add_serve_verb
from service.token_command import add_token_verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. argparse exits with 2 by itself when a flag is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    configure_logging(logging.getLevelNamesMapping()[options.log_level.upper()])
    try:
        run = options.verb(options)
    except ValueError as error:
        parser.error(str(error))
    with _sigterm_unwinds():
        return run()


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends a command as an exception does, so that the services it started end too; `serve` has its own way."""
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off what the first one began
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve premotor policies.")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    add_serve_verb(verbs)
    _add_ctl(verbs)
    add_chaos_verbs(verbs)
    _add_check(verbs)
    _add_further_gateway(verbs)
    add_token_verbs(verbs)
    add_bench_verbs(verbs)
    return parser


def _add_ctl(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("ctl", help="operate a running service: promote, roll back, split, shadow, ...")
    verb.set_defaults(verb=lambda options: partial(ctl.run, options))
    ctl.add_arguments(verb)


def _add_check(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("check", help="verify a checkpoint and its probe", formatter_class=HelpFormatter)
    verb.set_defaults(verb=_check)
    verb.add_argument("directory", type=Path)
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")


def _add_further_gateway(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """For `serve --gateways` to call, so without help: what it goes by comes on stdin."""
    verb = verbs.add_parser("further-gateway")
    verb.set_defaults(verb=lambda options: _run_further_gateway)


def _run_further_gateway() -> int:
    from service.processes.further import run

    return run()


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


if __name__ == "__main__":
    sys.exit(main())
