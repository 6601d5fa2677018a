"""`make demo`: serve the shipped checkpoint and let simulated robots of six bodies use it over gRPC.

Starts `python -m service serve` (Triton, gateway, admin) as a child, runs the closed-loop evaluation of `training`
against its address, prints the table, and stops the child. Knows the service by its command line alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(ROOT)]

POLICY = "tabletop"
TASKS = ("drawer-open", "lift", "pick-can", "stack-ur5e", "pick-can-iiwa", "stack-kinova3", "transfer-cube")
HELD_OUT_SEED = 100_000
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, _end_simulators_and_exit)
    say(f"serving {options.checkpoint}")
    options.out.mkdir(parents=True, exist_ok=True)
    with service(options.checkpoint, options.backend, options.out / "service.log") as ready:
        say(f"gRPC on {ready['grpc']}, admin on {ready['admin']} (log: {options.out / 'service.log'})")
        say(f"{options.episodes} episodes of each task on held-out scenes, {options.workers} simulators at a time")
        rows = evaluate(ready["grpc"], options)
    print_results(rows, options)
    return 0


def _end_simulators_and_exit(number: int, _: object) -> None:
    """SIGTERM ends the demo as an exception does, so that the service ends too, and none of it waits for a task."""
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off what the first one began
    for simulator in multiprocessing.active_children():
        simulator.terminate()
    sys.exit(128 + number)


def evaluate(address: str, options: argparse.Namespace) -> list[Any]:
    from training.evaluate import Target, evaluate

    return evaluate(
        Target(address=address, policy=POLICY, history=options.history),
        tasks=options.tasks,
        num_episodes=options.episodes,
        first_seed=options.first_seed,
        num_workers=options.workers,
        video_directory=options.out / "videos",
    )


def print_results(rows: list[Any], options: argparse.Namespace) -> None:
    from training.evaluate import format_table, write_results

    print()
    print(format_table(rows))
    print()
    for row in rows:
        print(f"video: {options.out / 'videos' / row['task']}.mp4")
    for path in (options.out / "results.json", options.json):
        if path is not None:
            write_results(path, rows, policy=POLICY, backend=options.backend, history=options.history)
    print(f"figures: {options.out / 'results.json'}")


@contextmanager
def service(checkpoint: Path, backend: str, log: Path) -> Iterator[dict[str, str]]:
    """The running service's ready line; stopped by SIGTERM, which drains it."""
    command = [
        sys.executable, "-m", "service", "serve", "--policy", f"{POLICY}={checkpoint.resolve()}", "--backend", backend,
        "--port", "0", "--admin-port", "0",
    ]  # fmt: skip
    with log.open("w") as errors, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors) as child:
        try:
            yield _wait_until_ready(child, log)
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(STOP_TIMEOUT_S)


def _wait_until_ready(child: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    assert child.stdout is not None
    deadline_s, output = time.monotonic() + START_TIMEOUT_S, b""
    problem = f"the service did not get ready within {START_TIMEOUT_S:g} s"
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline_s - time.monotonic())):
            block = os.read(child.stdout.fileno(), 65536)
            if not block:
                problem = f"the service ended with status {child.wait(STOP_TIMEOUT_S)} before it was ready"
                break
            output += block
            *lines, _ = output.split(b"\n")
            for line in lines:
                if line.startswith(b"{") and json.loads(line).get("event") == "ready":
                    return json.loads(line)
    tail = "\n".join(log.read_text().splitlines()[-15:])
    raise SystemExit(f"demo: {problem}\n{tail}")


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / POLICY)
    parser.add_argument("--backend", choices=("triton", "local"), default="triton")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--episodes", type=int, default=10, help="per task (default: 10)")
    parser.add_argument("--first-seed", type=int, default=HELD_OUT_SEED, help="scenes from this seed on")
    parser.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send the robots' history with every request (default: they do)",
    )
    parser.add_argument("--workers", type=int, default=2, help="simulators at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="results, videos and log")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    options = parser.parse_args()
    if problem := _problem(options):
        parser.error(problem)
    return options


def _problem(options: argparse.Namespace) -> str:
    """What is wrong with arguments that argparse takes, "" when nothing is; a service takes a minute to start."""
    from training.names import UnknownNameError
    from training.simulation.registry import check_task

    for name in ("episodes", "workers"):
        if getattr(options, name) < 1:
            return f"--{name} is {getattr(options, name)}, expected at least 1"
    if options.first_seed < HELD_OUT_SEED:
        return (
            f"--first-seed is {options.first_seed}, expected at least {HELD_OUT_SEED}: policies trained on scenes below"
        )
    try:
        for task in options.tasks:
            check_task(task)
    except UnknownNameError as error:
        return f"--tasks: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
