"""The guard leaves nothing behind, however it or its command ends."""

from __future__ import annotations

import fcntl
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from service.triton import guard

WAIT_S = 20.0
# A server and a child of its own, as Triton and its stub; both ignore what they can.
FAMILY = """
import os, signal, subprocess, sys, time
{setup}
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
sys.stdin.readline()
{end}
"""


class Guarded:
    """A guard around a python program that prints its child's pid."""

    def __init__(
        self,
        directory: Path,
        *,
        setup: str = "",
        end: str = "time.sleep(1000)",
        grace_s: float = 10.0,
        least_descriptor: int = 0,
    ) -> None:
        """`least_descriptor`: the guard is told of its service's end by a descriptor of this number or a higher one."""
        self.directory = directory
        self.state = directory.with_name("state")
        (self.state / "checkpoints").mkdir(parents=True)
        self.prefix = f"{guard.SHM_PREFIX}{secrets.token_hex(6)}-"
        self.region = Path("/dev/shm") / f"{self.prefix}region"
        self.region.touch()
        lowest_fd, self.control_fd = os.pipe()
        read_fd = fcntl.fcntl(lowest_fd, fcntl.F_DUPFD_CLOEXEC, least_descriptor)
        os.close(lowest_fd)
        program = FAMILY.format(setup=setup, end=end)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", guard.__file__, str(read_fd), self.prefix, str(grace_s)),
                *(str(directory), str(self.state), guard.END_OF_DIRECTORIES, sys.executable, "-c", program),
            ],
            pass_fds=(read_fd,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        os.close(read_fd)
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.child = psutil.Process(int(self.process.stdout.readline()))
        self.family = [self.child, *psutil.Process(self.process.pid).children()]
        # Whatever the server does next, its family is known by now.
        self.process.stdin.write(b"go on\n")
        self.process.stdin.flush()

    def nothing_left(self) -> bool:
        _, alive = psutil.wait_procs(self.family, timeout=WAIT_S)
        return not alive and not self.region.exists()

    def clean_up(self) -> None:
        with suppress(OSError):
            os.close(self.control_fd)
        for process in self.family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with self.process:
            self.process.kill()
        self.region.unlink(missing_ok=True)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


@pytest.fixture
def guarded(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    guarded = Guarded(run_directory, **getattr(request, "param", {}))
    yield guarded
    guarded.clean_up()


def test_when_the_service_is_gone_so_is_everything_of_triton(guarded: Guarded) -> None:
    os.close(guarded.control_fd)
    assert guarded.process.wait(WAIT_S) == 128 + signal.SIGTERM
    assert guarded.nothing_left()
    assert not guarded.directory.exists()
    assert not guarded.state.exists()


def test_a_stop_keeps_the_directories_for_the_next_start(guarded: Guarded) -> None:
    os.write(guarded.control_fd, b"k")
    os.close(guarded.control_fd)
    guarded.process.wait(WAIT_S)
    assert guarded.nothing_left()
    assert guarded.directory.exists()
    assert guarded.state.exists()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != most < 2048:
        pytest.skip(f"a process here may have {most} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


# A service has a connection for each robot, and starts Triton again when it is lost.
@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("guarded", [{"least_descriptor": 1024}], indirect=True)
def test_a_service_with_more_than_a_thousand_connections_has_a_guard_too(guarded: Guarded) -> None:
    os.close(guarded.control_fd)
    assert guarded.process.wait(WAIT_S) == 128 + signal.SIGTERM
    assert guarded.nothing_left()


@pytest.mark.parametrize(
    "guarded", [{"setup": "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "grace_s": 0.2}], indirect=True
)
def test_what_ignores_the_stop_is_killed(guarded: Guarded) -> None:
    os.write(guarded.control_fd, b"k")
    os.close(guarded.control_fd)
    assert guarded.process.wait(WAIT_S) == 128 + signal.SIGKILL
    assert guarded.nothing_left()


@pytest.mark.parametrize("guarded", [{"end": "os.kill(os.getpid(), signal.SIGKILL)"}], indirect=True)
def test_children_do_not_outlive_a_server_that_is_killed(guarded: Guarded) -> None:
    assert guarded.process.wait(WAIT_S) == 128 + signal.SIGKILL
    assert guarded.nothing_left()
    assert guarded.directory.exists()


@pytest.mark.parametrize("guarded", [{"end": "sys.exit(3)"}], indirect=True)
def test_the_exit_status_is_the_servers(guarded: Guarded) -> None:
    assert guarded.process.wait(WAIT_S) == 3
    assert guarded.nothing_left()


def test_a_server_does_not_outlive_a_guard_that_is_killed(guarded: Guarded) -> None:
    server = [process for process in guarded.family if process != guarded.child]
    guarded.process.kill()
    _, alive = psutil.wait_procs(server, timeout=WAIT_S)
    assert not alive


def test_a_prefix_that_others_may_use_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", guard.__file__, "0", "", "1", str(tmp_path), "--", "true"]
    refused = subprocess.run(command, capture_output=True, check=False, timeout=WAIT_S)
    assert refused.returncode == 1
    assert b"expected it to begin with" in refused.stderr
