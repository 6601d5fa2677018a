"""A small process between the service and tritonserver that leaves nothing behind, however either of them ends.

Owns tritonserver's end: its process group, its shared memory, the directory of the run, and what else the service has
that is of no use after it. Runs as a script with the standard library alone (`python -I -S guard.py CONTROL_FD
SHM_PREFIX GRACE_S DIRECTORY... -- COMMAND...`) and stops when the write end of CONTROL_FD closes, which is both how the
service asks for it and what the kernel does when the service is killed. A byte written before tells that the service is
alive and keeps the directories.

Triton's python backend leaves three things when it ends badly: stubs that live on for seconds, zombies, and regions in
/dev/shm that nobody else knows the names of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SHM_PREFIX = "premotor-triton-"
END_OF_DIRECTORIES = "--"
_SHM = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """The exit status of the command, 128 + signal when a signal ended it."""
    end = arguments.index(END_OF_DIRECTORIES)
    control_fd, shm_prefix, grace_s = int(arguments[0]), arguments[1], float(arguments[2])
    directories, command = arguments[3:end], arguments[end + 1 :]
    if not shm_prefix.startswith(SHM_PREFIX):
        raise ValueError(f"shared memory prefix is {shm_prefix!r}, expected it to begin with {SHM_PREFIX!r}")
    libc = ctypes.CDLL(None)
    # Stubs whose tritonserver is gone come to this process, which can then wait for their end.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake_fd = _wake_on_signals()
    server = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    deserted = _wait(server, control_fd, wake_fd, grace_s)
    _end_group(server.pid)
    _remove_shared_memory(shm_prefix)
    if deserted:
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _wake_on_signals() -> int:
    """A descriptor that is readable after SIGCHLD or a signal that asks this process to stop."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write_fd)
    return read_fd


def _wait(server: subprocess.Popen[bytes], control_fd: int, wake_fd: int, grace_s: float) -> bool:
    """Waits for the server's end and brings it about when asked; true when the service went without a word."""
    kill_at_s: float | None = None
    deserted = False
    # select.select() knows no descriptor beyond 1023, which is what a service of many robots gives out.
    with selectors.DefaultSelector() as selector:
        selector.register(wake_fd, selectors.EVENT_READ)
        selector.register(control_fd, selectors.EVENT_READ)
        while server.poll() is None:
            remaining_s = None if kill_at_s is None else max(0.0, kill_at_s - time.monotonic())
            readable = {key.fd for key, _ in selector.select(remaining_s)}
            stop = control_fd in readable
            if stop:
                deserted = os.read(control_fd, 1) == b""
            if wake_fd in readable:
                stop |= any(number != signal.SIGCHLD for number in os.read(wake_fd, 64))
            if stop and kill_at_s is None:
                selector.unregister(control_fd)
                server.terminate()
                # Nobody is left to take an answer from a service that was killed.
                kill_at_s = time.monotonic() + (0.0 if deserted else grace_s)
            elif kill_at_s is not None and time.monotonic() >= kill_at_s:
                server.kill()
                server.wait()
    return deserted


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _remove_shared_memory(prefix: str) -> None:
    for region in _SHM.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
