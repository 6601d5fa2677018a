"""The tasks by name. Importing this module imports no simulator: each is imported when one of its tasks is made."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from dataclasses import dataclass

from training.simulation.task import Simulation


@dataclass(frozen=True, kw_only=True)
class _Entry:
    module: str
    simulation: str
    package: str


_METAWORLD = _Entry(module="training.simulation.metaworld", simulation="MetaWorldSimulation", package="metaworld")
_ALOHA = _Entry(module="training.simulation.aloha", simulation="AlohaSimulation", package="gym-aloha")
_PANDA = _Entry(module="training.simulation.panda", simulation="PandaSimulation", package="robosuite")
_TASKS = {
    "pick-place": _METAWORLD,
    "drawer-open": _METAWORLD,
    "button-press": _METAWORLD,
    "transfer-cube": _ALOHA,
    "lift": _PANDA,
}
TASK_NAMES = tuple(_TASKS)


class UnknownTaskError(ValueError):
    """No simulation has this name."""


class MissingSimulatorError(ImportError):
    """The simulator of a task is not installed."""


def make_simulation(task: str) -> Simulation:
    """Raises UnknownTaskError, or MissingSimulatorError with the remedy."""
    entry = _entry(task)
    try:
        module = importlib.import_module(entry.module)
        return getattr(module, entry.simulation)(task)
    except ModuleNotFoundError as error:
        raise MissingSimulatorError(
            f"task {task!r} needs {entry.package}, and the module {error.name!r} is not installed: "
            "pip install 'premotor[sim]'"
        ) from error


def check_task(task: str) -> None:
    """Raises UnknownTaskError, which suggests the nearest name; imports no simulator."""
    _entry(task)


def simulator_versions(task: str) -> dict[str, str]:
    """The installed versions that a task's scenes and images depend on."""
    return {package: importlib.metadata.version(package) for package in ("mujoco", _entry(task).package)}


def _entry(task: str) -> _Entry:
    if task not in _TASKS:
        nearest = difflib.get_close_matches(task, TASK_NAMES, n=1, cutoff=0.0)[0]
        raise UnknownTaskError(
            f"unknown task {task!r}, did you mean {nearest!r}? The tasks are {', '.join(TASK_NAMES)}"
        )
    return _TASKS[task]
