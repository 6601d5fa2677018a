"""Requests in memory that Triton's model processes on this machine can read, so that few bytes cross to it.

Triton's HTTP service reads 4 KiB at a time: a megabyte of pixels takes it milliseconds. Owns the memory: anonymous
files of this process, which the kernel removes with it, read by way of /proc. A region holds one request until that is
answered; one that was given up is never used again, because its model may read it yet. Does not own what is in a
request (client.py) or its reading (adapter.py).
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from service.triton.tensors import ELSEWHERE, ELSEWHERE_HEAD, INT64_BYTES

# Fewer bytes are sent sooner than opened.
FEWEST_BYTES = 64 * 1024
# What is kept for the next requests: enough for a batch of robots with two cameras of 480 x 640.
MOST_IDLE_BYTES = 48 * 1024 * 1024


class SharedRequests:
    """`enabled` where Triton's processes see this one: same machine, same user, same namespace of processes."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._idle: list[_Region] = []

    @contextmanager
    def sent(self, parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
        """The bytes to send for a request made of `parts`: themselves, or where they are, until the block ends."""
        num_bytes = sum(len(part) for part in parts)
        region = self._region(num_bytes) if self.enabled and num_bytes >= FEWEST_BYTES else None
        if region is None:
            yield b"".join(parts)
            return
        try:
            yield region.filled(parts, num_bytes)
        except BaseException:
            region.close()
            raise
        if sum(idle.num_bytes for idle in self._idle) + region.num_bytes <= MOST_IDLE_BYTES:
            self._idle.append(region)
        else:
            region.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _region(self, num_bytes: int) -> _Region | None:
        """None where there is no memory for it."""
        if self._idle:
            region = self._idle.pop()
            if region.num_bytes >= INT64_BYTES + num_bytes:
                return region
            region.close()
        # A half more than asked, so that a body with larger frames does not have one made for each of its requests.
        with suppress(OSError):
            return _Region(INT64_BYTES + num_bytes + num_bytes // 2)
        return None


class _Region:
    """A token that nobody can guess, then a request."""

    def __init__(self, num_bytes: int) -> None:
        """Raises OSError where there is not that much memory: a page that is missing later would end this process."""
        self.num_bytes = num_bytes
        self._fd = os.memfd_create("premotor-request")
        try:
            os.posix_fallocate(self._fd, 0, num_bytes)
            self._memory = mmap.mmap(self._fd, num_bytes)
        except BaseException:
            os.close(self._fd)
            raise

    def filled(self, parts: Sequence[bytes | memoryview], num_bytes: int) -> bytes:
        """Where it is, in the form of ELSEWHERE_HEAD."""
        token = secrets.randbits(63)
        struct.pack_into("<q", self._memory, 0, token)
        start = INT64_BYTES
        for part in parts:
            self._memory[start : start + len(part)] = part
            start += len(part)
        return struct.pack(f"<{len(ELSEWHERE_HEAD)}q", ELSEWHERE, os.getpid(), self._fd, token, num_bytes)

    def close(self) -> None:
        self._memory.close()
        os.close(self._fd)
