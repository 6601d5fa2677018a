"""`python -m training playback`: which cells there are, playing those that are left, and what is written of them.

Owns its arguments and the order. In lock step a checkpoint plays in this process's workers; with --real-time a served
policy is asked over the network and the world does not wait.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.embodiment import EmbodimentSpec
    from premotor.client import Group
    from training.gateway_identity import GatewayIdentity
    from training.playback.cells import Cell, PlayedPolicy
    from training.playback.scenes import Row

# Of every suite that is shipped.
_SCENES_OF = "cross13"
# Those of training/rollout.py, which imports torch: OpenMP reads its settings then, after the arguments.
RULES = ("replace", "ensemble", "guidance", "prefix")
_LOCK_STEP_DELAY = (
    "The delay is exact: a chunk takes over so many steps after its observation, from the action for that step on."
)
_REAL_TIME_DELAY = (
    "A proxy on the way adds so many control periods to every round trip, half each way; the policy's own time and the "
    "rest of the period in which an answer comes are on top. The delay that is measured is counted in whole steps, "
    "from that of an observation to the first that could play its chunk."
)


class WrongPlaybackError(ValueError):
    """Arguments that are each right and together wrong."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--checkpoint", type=Path, metavar="DIR", help="to play in lock step")
    verb.add_argument("--tasks", nargs="+", required=True, metavar="TASK")
    verb.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="default: all")
    verb.add_argument("--delays", nargs="+", type=int, default=[0, 1, 2, 4, 8], metavar="STEPS", help="0 1 2 4 8")
    verb.add_argument("--episodes", type=int, default=50, help="scenes of every row (default %(default)s)")
    verb.add_argument("--first-seed", type=int, help="of the tuning or the testing scenes (default: of testing)")
    verb.add_argument("--history", action="store_true", help="in lock step, tell the policy the true history")
    verb.add_argument("--workers", type=int, help="processes in lock step (default: 2; in real time there is one)")
    verb.add_argument("--real-time", action="store_true", help="simulators that do not wait, and a served policy")
    verb.add_argument("--address", default="", metavar="HOST:PORT", help="of its gateway")
    verb.add_argument("--policy", default="", metavar="NAME", help="its name there")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="to write, or to go on with")
    verb.add_argument("--json", type=Path, metavar="FILE", help="also write results.json here")
    verb.set_defaults(threads=1)


def run(options: argparse.Namespace) -> None:
    from training.playback.cells import Refusal, all_cells
    from training.playback.measurement import Measurement, collect, play_all
    from training.simulation.registry import embodiment

    _check(options)
    scenes = _scenes(options)
    seeds = range(_first_seed(options), _first_seed(options) + options.episodes)
    subject = (_served if options.real_time else _in_lock_step)(options, seeds)
    cells = all_cells(options.rules, options.delays, options.tasks)
    reasons = {cell: subject.reason(cell, embodiment(cell.task)) for cell in cells}
    refusals = [Refusal(cell=cell, reason=reason) for cell, reason in reasons.items() if reason]
    playable = [cell for cell in cells if not reasons[cell]]
    measurement = Measurement(directory=options.out, identity=subject.identity)
    left = [cell for cell in playable if measurement.row(cell) is None]
    for refusal in refusals:
        print(f"not applicable: {_name(refusal.cell)}: {refusal.reason}", file=sys.stderr)
    num_played = len(playable) - len(left)

    def finished(row: Row) -> None:
        nonlocal num_played
        measurement.write(row)
        num_played += 1
        solved = sum(scene.succeeded for scene in row.scenes)
        print(
            f"{num_played} of {len(playable)}: {_name(row.cell)}: {solved} of {len(row.scenes)} solved",
            file=sys.stderr,
            flush=True,
        )

    try:
        play_all(left, subject.play, finished, num_workers=options.workers or subject.num_workers)
    finally:
        # What there is when a cell fails or the keyboard interrupts is a partial result, and says so.
        values = collect(
            measurement,
            playable,
            refusals,
            title=subject.title,
            command=_command(options),
            scenes=scenes,
            axis=subject.axis,
            delay=subject.delay,
            policy=asdict(subject.policy),
        )
        _write(values, options.out, options.json)
    for claim in values["claims"]:
        print(f"{claim['verdict']}: {claim['claim']}")
    print(options.out / "report.md")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is measured, and how one cell of it is played."""

    title: str
    axis: str
    delay: str
    identity: Mapping[str, Any]
    policy: PlayedPolicy
    bodies: Sequence[str]
    refuse: Callable[[Cell, PlayedPolicy, Sequence[Group]], str]
    play: Callable[[Cell], Row]
    num_workers: int

    def reason(self, cell: Cell, spec: EmbodimentSpec) -> str:
        from training.simulation.robot import described

        if spec.name not in self.bodies:
            raise ValueError(
                f"task {cell.task!r} is played by {spec.name!r}, the policy moves {', '.join(self.bodies)}"
            )
        return self.refuse(cell, self.policy, described(spec).action)


def _in_lock_step(options: argparse.Namespace, seeds: range) -> _Subject:
    from policy.policy import Policy
    from training.playback.cells import PlayedPolicy, reason_in_lock_step
    from training.playback.lock_step import play_in_lock_step

    loaded = Policy.from_checkpoint(options.checkpoint)
    return _Subject(
        title="How chunks are played, in lock step",
        axis="delay, control steps",
        delay=_LOCK_STEP_DELAY,
        identity={
            "mode": "lock step",
            "revision": loaded.revision,
            "first_seed": seeds.start,
            "episodes": len(seeds),
            "history": options.history,
        },
        policy=PlayedPolicy(
            action_horizon=loaded.config.action_horizon,
            execution_horizon=loaded.config.execution_horizon,
            max_inference_delay=loaded.config.max_inference_delay,
        ),
        bodies=tuple(loaded.embodiments),
        refuse=reason_in_lock_step,
        play=partial(play_in_lock_step, checkpoint=options.checkpoint, history=options.history, seeds=tuple(seeds)),
        num_workers=2,
    )


def _served(options: argparse.Namespace, seeds: range) -> _Subject:
    from premotor.client import PolicyError
    from training.evaluate import EvaluationError
    from training.playback.cells import PlayedPolicy, reason_in_real_time
    from training.playback.real_time import play_in_real_time

    identity = _identity(options)
    try:
        with identity.client(options.address) as client:
            served = client.get_policy(options.policy)
    except PolicyError as error:
        raise EvaluationError(f"policy {options.policy!r} at {options.address}: {error}") from error
    return _Subject(
        title="How chunks are played, against the clock",
        axis="control periods added",
        delay=_REAL_TIME_DELAY,
        identity={
            "mode": "real time",
            "revision": served.revision,
            "first_seed": seeds.start,
            "episodes": len(seeds),
        },
        policy=PlayedPolicy(
            action_horizon=served.action_horizon,
            execution_horizon=served.execution_horizon,
            max_inference_delay=served.max_inference_delay,
        ),
        bodies=[body.name for body in served.embodiments],
        refuse=reason_in_real_time,
        play=partial(
            play_in_real_time,
            address=options.address,
            identity=identity,
            policy=options.policy,
            revision=served.revision,
            seeds=tuple(seeds),
        ),
        num_workers=1,
    )


def _identity(options: argparse.Namespace) -> GatewayIdentity:
    """Checked against the gateway's own address: the proxy on the way is on loopback, where anything may be sent."""
    from training.gateway_identity import read_identity

    try:
        identity = read_identity(options)
    except ValueError as error:
        raise WrongPlaybackError(str(error)) from None
    if identity.tls is not None:
        raise WrongPlaybackError(
            "--real-time asks through a proxy on loopback, for which no gateway has a certificate: measure without TLS"
        )
    return identity


def _check(options: argparse.Namespace) -> None:
    """Raises WrongPlaybackError, or UnknownNameError for a task."""
    from training.simulation.registry import check_task

    for task in options.tasks:
        check_task(task)
    for name in ("tasks", "rules", "delays"):
        named = getattr(options, name)
        if len(set(named)) != len(named):
            raise WrongPlaybackError(f"--{name} names one twice: {' '.join(map(str, named))}")
    if min(options.delays) < 0:
        raise WrongPlaybackError(f"--delays has {min(options.delays)}, expected 0 or more control steps")
    if options.episodes < 1:
        raise WrongPlaybackError(f"--episodes is {options.episodes}, expected at least 1")
    if options.workers is not None and options.workers < 1:
        raise WrongPlaybackError(f"--workers is {options.workers}, expected at least 1")
    if options.real_time:
        _check_real_time(options)
        return
    if options.checkpoint is None:
        raise WrongPlaybackError("in lock step a --checkpoint plays; with --real-time the policy at an --address does")
    if options.address or options.policy:
        raise WrongPlaybackError("--address and --policy go with --real-time")


def _check_real_time(options: argparse.Namespace) -> None:
    if not options.address or not options.policy:
        raise WrongPlaybackError("--real-time needs --address and --policy, a gateway and the name of a policy there")
    if options.checkpoint is not None:
        raise WrongPlaybackError("--real-time asks the policy at --address, not a --checkpoint: serve it")
    if options.history:
        raise WrongPlaybackError("--history is for lock step; a chunk player sends what history the policy takes")
    if options.workers not in (None, 1):
        raise WrongPlaybackError("--real-time plays one scene at a time, or simulators would take each other's time")


def _scenes(options: argparse.Namespace) -> str:
    """Whether they are the tuning or the testing ones. Raises WrongPlaybackError for scenes that are neither."""
    from training.suite import Suite

    first, last = _first_seed(options), _first_seed(options) + options.episodes - 1
    seeds = Suite.load(_SCENES_OF).seeds
    ranges = {"tuning": seeds.tuning, "testing": seeds.testing}
    for name, scenes in ranges.items():
        if scenes.first <= first and last <= scenes.last:
            return name
    known = " or ".join(f"{scenes.first} to {scenes.last} ({name})" for name, scenes in ranges.items())
    raise WrongPlaybackError(f"scenes {first} to {last} came, expected some of {known}")


def _first_seed(options: argparse.Namespace) -> int:
    from training.suite import Suite

    return Suite.load(_SCENES_OF).seeds.testing.first if options.first_seed is None else options.first_seed


def _write(values: Mapping[str, Any], directory: Path, also: Path | None) -> None:
    from training.json_file import write_json, write_text
    from training.playback.plot import draw
    from training.playback.report import format_report

    for path in (directory / "results.json", also):
        if path is not None:
            write_json(path, values)
    figures = draw(values, directory)
    write_text(directory / "report.md", format_report(values, [figure.name for figure in figures]))


def _name(cell: Cell) -> str:
    return f"{cell.task}, {cell.rule} at {cell.delay_steps}"


def _command(options: argparse.Namespace) -> str:
    """What makes the same figures again; who may ask is not told."""
    asked: list[object] = ["python", "-m", "training", "playback"]
    if options.real_time:
        asked += ["--real-time", "--address", options.address, "--policy", options.policy]
    else:
        asked += ["--checkpoint", options.checkpoint, *(["--history"] if options.history else [])]
    asked += ["--tasks", *options.tasks, "--rules", *options.rules, "--delays", *options.delays]
    asked += ["--episodes", options.episodes, "--first-seed", _first_seed(options), "--out", options.out]
    return shlex.join(map(str, asked))
