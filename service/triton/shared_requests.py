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
# What all of them take together: enough for 16 robots with two cameras of 1080 x 1920. What does not fit is sent whole,
# which costs less than making and freeing a region every time.
MOST_BYTES = 256 * 1024 * 1024


class SharedRequests:
    """`enabled` where Triton's processes see this one: same machine, same user, same namespace of processes."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._idle: list[_Region] = []
        self._num_bytes = 0

    @contextmanager
    def sent(self, parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
        """The bytes to send for a request made of `parts`: themselves, or where they are, until the block ends."""
        num_bytes = sum(len(part) for part in parts)
        region = self._region(INT64_BYTES + num_bytes) if self._enabled and num_bytes >= FEWEST_BYTES else None
        if region is None:
            yield b"".join(parts)
            return
        try:
            yield region.filled(parts)
        except BaseException:
            self._drop(region)
            raise
        if self._enabled:
            self._idle.append(region)
        else:
            self._drop(region)

    def close(self) -> None:
        """From now on all are sent themselves; what is in use goes with its answer."""
        self._enabled = False
        while self._idle:
            self._drop(self._idle.pop())

    def _region(self, num_bytes: int) -> _Region | None:
        """None where there is no memory for it."""
        for position, idle in enumerate(self._idle):
            if idle.num_bytes >= num_bytes:
                return self._idle.pop(position)
        if self._idle:
            # In its place, so that there are never more than requests at the same time.
            smallest = min(self._idle, key=lambda region: region.num_bytes)
            self._idle.remove(smallest)
            self._drop(smallest)
        if self._num_bytes + num_bytes > MOST_BYTES:
            return None
        with suppress(OSError):
            region = _Region(num_bytes)
            self._num_bytes += num_bytes
            return region
        return None

    def _drop(self, region: _Region) -> None:
        self._num_bytes -= region.num_bytes
        region.close()


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

    def filled(self, parts: Sequence[bytes | memoryview]) -> bytes:
        """Where it is, in the form of ELSEWHERE_HEAD."""
        token = secrets.randbits(63)
        struct.pack_into("<q", self._memory, 0, token)
        end = INT64_BYTES
        for part in parts:
            self._memory[end : end + len(part)] = part
            end += len(part)
        num_bytes = end - INT64_BYTES
        return struct.pack(f"<{len(ELSEWHERE_HEAD)}q", ELSEWHERE, os.getpid(), self._fd, token, num_bytes)

    def close(self) -> None:
        self._memory.close()
        os.close(self._fd)
