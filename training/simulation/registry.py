"""The tasks by name: every file of tasks/ is one, imported when it is asked for, and its simulator when it is made.

Owns the names and what a task's file must hold. Does not own tasks or bodies: a new one is one file there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from typing import Protocol, cast

from policy.embodiment import EmbodimentSpec
from training.names import unknown_name
from training.simulation import tasks
from training.simulation.bodies import load_body
from training.simulation.task import Simulation

_REMEDY = "make setup, or pip install 'premotor[sim]'"
# It demands a numpy < 2 that it does not need as it is used here, so that no extra can name it; see the Makefile.
ROBOSUITE_REMEDY = f"{_REMEDY} and then pip install --no-deps robosuite==1.5.2"

TASK_NAMES = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(tasks.__path__)))


class MissingSimulatorError(ImportError):
    """The simulator of a task is not installed."""


class _Task(Protocol):
    """What a task's file holds."""

    BODY: str
    PACKAGE: str

    def make(self) -> Simulation: ...


def make_simulation(task: str) -> Simulation:
    """Raises UnknownNameError, or MissingSimulatorError with the remedy."""
    definition = _load(task)
    try:
        return definition.make()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(f"{__name__.partition('.')[0]}."):
            raise  # a file of ours that is not there, as a body's: no installation brings it
        raise MissingSimulatorError(
            f"task {task!r} needs {definition.PACKAGE}, and the module {error.name!r} is not installed: "
            + (ROBOSUITE_REMEDY if definition.PACKAGE == "robosuite" else _REMEDY)
        ) from error


def check_task(task: str) -> None:
    """Raises UnknownNameError; imports no simulator."""
    if task not in TASK_NAMES:
        raise unknown_name("task", task, TASK_NAMES)


def body_of(task: str) -> str:
    """The name of the body that plays a task; raises UnknownNameError and imports no simulator."""
    return _load(task).BODY


def embodiment(task: str) -> EmbodimentSpec:
    """The spec of the body that plays a task; raises UnknownNameError and imports no simulator."""
    return load_body(body_of(task)).SPEC


def simulator_versions(task: str) -> dict[str, str]:
    """The installed versions that a task's scenes and images depend on."""
    return {package: importlib.metadata.version(package) for package in ("mujoco", _load(task).PACKAGE)}


def _load(task: str) -> _Task:
    check_task(task)
    return cast(_Task, importlib.import_module(f"{tasks.__name__}.{task.replace('-', '_')}"))
