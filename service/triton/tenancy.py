"""Whose a model is in a tritonserver that several services use: each has a number, and its models carry it.

A service that shared its models would lose them with the one that stops first, and would have them loaded anew, with
other settings, by the one that starts last. Owns the numbers: each is a locked file of the model repository, which the
kernel unlocks however a service ends, so that the next one finds what a killed one has left. Does not own loading and
unloading (models.py).
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

_LOCK = re.compile(r"premotor-(\d+)\.lock")
_MODEL = re.compile(r"premotor_[^_]+_(\d+)")


class TenancyError(Exception):
    """The files of a model repository cannot be locked. The message says which one, and why."""


class Tenancy:
    """The lowest number that no living service has, from `take` until `let_go`, or the end of the process."""

    def __init__(self) -> None:
        # A descriptor for each number that is held.
        self._held: dict[int, int] = {}
        self.owner = ""
        # Models of services that are gone, whose numbers are held until `forget_leftovers`.
        self.leftovers: tuple[str, ...] = ()

    @classmethod
    def take(cls, repository: Path) -> Tenancy:
        """Raises TenancyError."""
        tenancy = cls()
        try:
            own = next(number for number in itertools.count() if tenancy._lock(repository, number))
            known = [int(found[1]) for path in repository.iterdir() if (found := _LOCK.fullmatch(path.name))]
            for number in known:
                if number != own:
                    tenancy._lock(repository, number)
            tenancy.owner = str(own)
            tenancy.leftovers = tuple(
                sorted(
                    path.name
                    for path in repository.iterdir()
                    if (found := _MODEL.fullmatch(path.name)) and int(found[1]) in tenancy._held
                )
            )
        except OSError as error:
            tenancy.let_go()
            raise TenancyError(f"the model repository cannot be shared: {error}") from None
        return tenancy

    def forget_leftovers(self) -> None:
        """They were removed."""
        self.leftovers = ()
        for number in [number for number in self._held if str(number) != self.owner]:
            os.close(self._held.pop(number))

    def let_go(self) -> None:
        """Another service may have the number."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _lock(self, repository: Path, number: int) -> bool:
        """False when a living service has it."""
        import fcntl  # which Windows lacks: Triton runs elsewhere

        # Never removed: who opened it before it was, and who makes it anew after, would both have the lock.
        descriptor = os.open(repository / f"premotor-{number}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._held[number] = descriptor
        return True
