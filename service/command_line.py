"""What the verbs' command lines share: help that shows defaults, the flags of a model, a result that is said and kept.

Owns exit status 1 of a measurement that failed or missed its goal. Does not own what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from service.model_settings import ModelSettings


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, but no "(default: None)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.required:
            return action.help
        return super()._get_help_string(action)


def add_model_flags(verb: argparse.ArgumentParser) -> None:
    """As `model_settings` reads them, and where the model runs."""
    defaults = ModelSettings()
    verb.add_argument(
        "--backend",
        choices=("triton", "local"),
        default="triton",
        help="where chunks are computed; local: in this process, where a robot may wait for one forward of a shadow, "
        "and a revision that loads takes some of the time of those that answer",
    )
    add_device_flags(verb)
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default=defaults.dtype)
    verb.add_argument("--max-batch-size", type=int, default=defaults.max_batch_size)
    verb.add_argument(
        "--max-queue-delay-us",
        type=int,
        default=defaults.max_queue_delay_us,
        help="hold a request back this long for company",
    )


def add_device_flags(verb: argparse.ArgumentParser) -> None:
    defaults = ModelSettings()
    verb.add_argument("--device", choices=("cpu", "cuda"), default=defaults.device)
    verb.add_argument("--threads", type=int, default=defaults.threads, help="torch threads per model")


def model_settings(options: argparse.Namespace, *, batching: bool = True) -> ModelSettings:
    return ModelSettings(
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        batching=batching,
        max_batch_size=options.max_batch_size,
        max_queue_delay_us=options.max_queue_delay_us,
    )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Something that takes a while and gives figures."""

    measure: Callable[[], dict[str, Any]]
    format_result: Callable[[dict[str, Any]], str]
    # What of its goal a result missed, each for a person; nothing to miss without one.
    missed_goals: Callable[[dict[str, Any]], Sequence[str]] | None = None


def add_measurement_flags(verb: argparse.ArgumentParser, make: Callable[[argparse.Namespace], Measurement]) -> None:
    """`make` raises ValueError for flags that do not go together."""
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    verb.set_defaults(verb=lambda options: partial(_report, make(options), options.json))


def _report(measurement: Measurement, json_path: Path | None) -> int:
    from service.bench.overhead import DeviceMissingError
    from service.bench.served import ServiceStartError
    from service.ctl.admin_client import AdminError
    from service.revision import RevisionError

    try:
        result = measurement.measure()
    except (RevisionError, ServiceStartError, DeviceMissingError, AdminError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 1
    missed = list(measurement.missed_goals(result)) if measurement.missed_goals is not None else []
    if measurement.missed_goals is not None:
        result = {**result, "missed_goals": missed}
    print(measurement.format_result(result))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    for each in missed:
        print(f"goal missed: {each}", file=sys.stderr)
    return 1 if missed else 0
