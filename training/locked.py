"""A lock on a directory that one process at a time may work in. It ends with its process, however that ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(RuntimeError):
    """Another process works in the directory."""


@contextmanager
def locked(directory: Path, doing: str) -> Iterator[None]:
    """One process at a time is inside; raises BusyError, which says what another one is `doing` there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process {doing} in {directory}; wait for its end") from None
        yield
