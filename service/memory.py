"""Whether a second copy of a model fits, asked before it is loaded.

Owns the estimate and the reading of what is free, on a CPU from /proc and the control group, on a GPU from its driver's
tool. Does not own what happens when it does not fit.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# Weights in memory, their copy while they are read, and the buffers of the largest batch.
_COPIES = 2.5
# A process with torch in it.
_PROCESS_BYTES = 512 * 1024**2
_QUERY_TIMEOUT_S = 5.0


class TooLittleMemoryError(Exception):
    """A model would not fit beside what runs. The message says what is free and what it takes."""


def needed_bytes(weights_bytes: int, *, own_process: bool) -> int:
    return int(weights_bytes * _COPIES) + (_PROCESS_BYTES if own_process else 0)


def check_fits(needed: int, free: int | None) -> None:
    """Raises TooLittleMemoryError; `free` None means that nobody can say, which does not stop a load."""
    if free is not None and needed > free:
        raise TooLittleMemoryError(
            f"{free / 1e6:.0f} MB are free, a second copy takes about {needed / 1e6:.0f} MB: unload a revision first"
        )


def free_bytes(device: str) -> int | None:
    """What can still be taken without pushing anybody out; None when that cannot be found out."""
    return _free_gpu_bytes() if device == "cuda" else _free_cpu_bytes()


def _free_cpu_bytes() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return min([available, *_free_in_control_group()])


def _free_in_control_group(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    limit, used = root / "memory.max", root / "memory.current"
    if not (limit.is_file() and used.is_file()):
        return []
    text = limit.read_text().strip()
    if text == "max":
        return []
    counters = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    # Cached files are given back when somebody needs the room.
    held = int(used.read_text()) - int(counters.get("inactive_file", 0))
    return [max(0, int(text) - held)]


def _free_gpu_bytes() -> int | None:
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True)
        return int(found.stdout.splitlines()[0]) * 1024**2
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
