"""What a figure was measured on and with. No host names: a figure is about a kind of machine.

Owns the description, with the command and the commit, which CPUs are whose, and the CPU time of another process's tree.
/proc is read where there is one.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_PACKAGES = ("premotor", "grpcio", "protobuf", "numpy", "websockets", "msgpack", "torch", "nvidia-pytriton")
_GIT_TIMEOUT_S = 5.0


def describe_machine() -> dict[str, Any]:
    """Cores, processor, memory and load: of the kind of machine, not of this one."""
    return {
        "num_cpus": os.cpu_count(),
        "processor": _processor(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": list(os.getloadavg()) if _PROC.exists() else None,
        "pinned_to": sorted(_affinity()),
    }


def describe_versions() -> dict[str, str]:
    """Of Python and of the packages that are on the way of a question."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def version_in(environment: Path, package: str) -> str | None:
    """Of a package in another virtual environment; None where it is not there."""
    paths = [str(path) for path in environment.glob("lib/python*/site-packages")]
    found = next(iter(metadata.distributions(name=package, path=paths)), None)
    return None if found is None else found.version


def describe_command(address: str = "") -> str:
    """As this process was called. Where a server or a file lies says nothing about a figure."""
    words = ["HOST:PORT" if address and word == address else word for word in sys.argv[1:]]
    words = [Path(word).name if word.startswith("/") else word for word in words]
    return f"python -m premotor.client {shlex.join(words)}"


def describe_commit(directory: Path) -> str | None:
    """Of the repository that the directory is in, with "-dirty" where something differs from it; None without one."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        said = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def cpu_shares(cpus: Sequence[int] | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The CPUs of robots, a quarter of all, and of servers, the others: how they are parted unless one says otherwise.

    Of `cpus`, or of those that this process may have; each side has one at least. Both are empty where there is only
    one, or where a process cannot be kept on some.
    """
    found = sorted(_affinity() if cpus is None else cpus)
    if len(found) < 2 or getattr(os, "sched_setaffinity", None) is None:
        return (), ()
    count = max(1, len(found) // 4)
    return tuple(found[-count:]), tuple(found[:-count])


def check_cpus(cpus: Sequence[int]) -> None:
    """Raises ValueError for CPUs that this process may not have."""
    if cpus and getattr(os, "sched_setaffinity", None) is None:
        raise ValueError("this system cannot pin a process to CPUs")
    if not set(cpus) <= _affinity():
        raise ValueError(f"CPUs {list(cpus)} came, this process may have {sorted(_affinity())}")


def pin(cpus: Sequence[int]) -> None:
    """Keeps this process, and what it starts, on these CPUs; none leaves it to the system."""
    if cpus:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """What is started inside keeps these CPUs; this process has its own again afterwards."""
    before = tuple(_affinity()) if cpus else ()
    pin(cpus)
    try:
        yield
    finally:
        pin(before)


def tree_cpu_s(*pids: int) -> float | None:
    """CPU seconds of processes and all below them that still live; None where there is no /proc.

    Of one that has ended since only what its parent waited for counts, so compare moments between which none ended.
    """
    if not _PROC.exists():
        return None
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for directory in _PROC.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            # The name, in brackets, may hold anything, also brackets and blanks.
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        process = int(directory.name)
        parents[process] = int(fields[1])
        ticks[process] = int(fields[11]) + int(fields[12])
    total = 0
    for process in ticks:
        ancestor = process
        while ancestor not in (0, *pids):
            ancestor = parents.get(ancestor, 0)
        total += ticks[process] if ancestor in pids else 0
    return total / os.sysconf("SC_CLK_TCK")


def _affinity() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity is not None else set(range(os.cpu_count() or 1))


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
