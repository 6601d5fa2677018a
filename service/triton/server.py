"""The tritonserver process: started, watched, stopped.

Owns the run directory, ports, command line and start-up check of one tritonserver at a time. Does not own models or
restarting (backend.py decides both), nor the cleaning up after a process (guard.py does, even when this one is killed).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.credentials.exposure import warn_of_public_triton
from service.triton import guard
from service.triton.client import TritonClient
from service.triton.http import is_unix
from service.triton.installation import TritonInstallation
from service.triton.models import unload_model
from service.triton.repository import remove_model
from service.triton.tenancy import Tenancy, TenancyError

_logger = logging.getLogger(__name__)
# A path in the address of a unix socket ends at 108 bytes.
_MAX_SOCKET_PATH_BYTES = 100
_START_POLL_INTERVAL_S = 0.05
_LIVE_TIMEOUT_S = 5.0
# How much of what it printed explains a failed start, and a sudden end.
_LOG_TAIL_LINES = 30
_LOSS_TAIL_LINES = 3
# Triton writes it behind the address, also where that is a path and the port is none.
_GRPC_PORT = 1
_PROC = Path("/proc")
# The program behind each model.
_STUB = b"/triton_python_backend_stub"
# Enough for the frames of a batch, so that no request waits for the region to grow.
_SHM_BYTES_PER_MODEL = 16 * 1024 * 1024


class TritonStartError(Exception):
    """tritonserver did not come up. The message ends with what it last printed."""


class TritonServer(Protocol):
    """A tritonserver that models can be loaded into."""

    @property
    def address(self) -> str:
        """Of its HTTP service, "host:port" or "unix:path"; may change with every start."""
        ...

    @property
    def control_address(self) -> str:
        """Of its gRPC service, which models are loaded by, in the same form."""
        ...

    @property
    def control_key(self) -> str:
        """What that service asks of who loads models, "KEY=VALUE"; empty for nothing."""
        ...

    @property
    def metrics_address(self) -> str | None:
        """Of its metrics, in the same form; None when only its owner knows."""
        ...

    @property
    def repository(self) -> Path:
        """Its model repository, writable from here."""
        ...

    @property
    def shares_memory(self) -> bool:
        """Whether its processes can open files of this one: same machine, same user, same namespace of processes."""
        ...

    @property
    def owner(self) -> str:
        """What tells our models from those of other services in it; empty where there are none. Known once started."""
        ...

    async def start(self) -> None:
        """Returns once it answers, without models. Raises TritonStartError."""
        ...

    async def wait_lost(self) -> str:
        """Returns why, once it no longer answers."""
        ...

    async def end_model(self, model: str) -> None:
        """Ends what is left of the process behind a model that Triton takes for dead; none is no error."""
        ...

    async def abandon(self) -> None:
        """Gives up on one that answers wrongly: `wait_lost` returns soon after."""
        ...

    async def stop(self) -> None:
        """Ends it, with what it holds. Can be called in any state."""
        ...


@dataclass(frozen=True, kw_only=True)
class TritonProcessSettings:
    threads: int = 1
    # OTLP over HTTP, the only kind that Triton speaks, where it sends its spans of requests that carry a traceparent.
    otlp_http_url: str = ""
    startup_timeout_s: float = 60.0
    # What still runs this long after a stop is killed.
    grace_s: float = 5.0


class TritonProcess:
    """A tritonserver of our own that listens on unix sockets only: no port is taken, nobody else can load a model.

    One process at a time; `start` may be called again after it was lost.
    """

    def __init__(
        self, installation: TritonInstallation, settings: TritonProcessSettings, *, state: Path | None = None
    ) -> None:
        """`state` is a directory of this service that nobody needs after it: removed as well if it is killed."""
        self._installation = installation
        self._settings = settings
        self._state = state
        self._directory = _run_directory()
        self._repository = self._directory / "models"
        self._repository.mkdir()
        try:
            self._backends = installation.backend_directory(self._directory)
        except Exception:
            shutil.rmtree(self._directory)
            raise
        self._guard: asyncio.subprocess.Process | None = None
        self._control_fd: int | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._log_tail: collections.deque[str] = collections.deque(maxlen=_LOG_TAIL_LINES)
        self._socket = self._directory / "http.sock"
        self._control_socket = self._directory / "grpc.sock"
        self._metrics_socket = self._directory / "metrics.sock"

    @property
    def address(self) -> str:
        return f"unix:{self._socket}"

    @property
    def control_address(self) -> str:
        return f"unix:{self._control_socket}:{_GRPC_PORT}"

    @property
    def control_key(self) -> str:
        return ""

    @property
    def metrics_address(self) -> str | None:
        return f"unix:{self._metrics_socket}"

    @property
    def repository(self) -> Path:
        return self._repository

    @property
    def shares_memory(self) -> bool:
        return True

    @property
    def owner(self) -> str:
        return ""

    async def start(self) -> None:
        await self._end()
        # The identity is in the names of shared memory, so that a start never meets what an earlier one left.
        server_id = guard.SHM_PREFIX + secrets.token_hex(6)
        for path in (self._socket, self._metrics_socket, Path(f"{self._control_socket}:{_GRPC_PORT}")):
            path.unlink(missing_ok=True)
        self._log_tail.clear()
        read_fd, write_fd = os.pipe()
        try:
            self._guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, str(read_fd), f"{server_id}-"),
                *(str(self._settings.grace_s), str(self._directory)),
                *((str(self._state.absolute()),) if self._state is not None else ()),
                *(guard.END_OF_DIRECTORIES, *self._command(server_id)),
                pass_fds=(read_fd,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._installation.environment(threads=self._settings.threads),
                # A Ctrl-C in the terminal is for the service, which then drains before it stops Triton.
                start_new_session=True,
            )
        except BaseException:
            os.close(write_fd)
            raise
        finally:
            os.close(read_fd)
        self._control_fd = write_fd
        self._log_task = asyncio.create_task(self._forward_log(self._guard))
        try:
            await self._wait_answering()
        except BaseException:
            await self._end()
            raise
        _logger.info("triton started", extra={"fields": {"address": self.address, "pid": self._guard.pid}})

    async def wait_lost(self) -> str:
        if self._guard is None:
            return "tritonserver is not running"
        status = await self._guard.wait()
        return "; ".join([f"tritonserver ended with status {status}", *list(self._log_tail)[-_LOSS_TAIL_LINES:]])

    async def end_model(self, model: str) -> None:
        """One that was only not run for a second is dead to Triton, which then forgets it with all that it holds."""
        await asyncio.to_thread(_kill_stubs, str(self._repository / model))

    async def abandon(self) -> None:
        self._release_control()

    async def stop(self) -> None:
        await self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _command(self, server_id: str) -> list[str]:
        command = [
            str(self._installation.executable),
            f"--id={server_id}",
            f"--model-repository={self._repository}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            f"--grpc-address=unix:{self._control_socket}",
            f"--grpc-port={_GRPC_PORT}",
            f"--http-address={self.address}",
            f"--metrics-address=unix:{self._metrics_socket}",
            # Whoever stops Triton has drained what was in flight; only unloading is left, which the guard does better.
            "--exit-timeout-secs=1",
            # Names that no other process uses, so that what a crash leaves in /dev/shm can be told from everybody
            # else's.
            f"--backend-config=python,shm-region-prefix-name={server_id}-",
            f"--backend-config=python,shm-default-byte-size={_SHM_BYTES_PER_MODEL}",
        ]
        if self._settings.otlp_http_url:
            command += [
                "--trace-config=mode=opentelemetry",
                f"--trace-config=opentelemetry,url={self._settings.otlp_http_url}",
                "--trace-config=level=TIMESTAMPS",
                # None of its own: what carries a traceparent is traced whatever the rate.
                "--trace-config=rate=0",
            ]
        if self._backends is not None:
            command.append(f"--backend-directory={self._backends}")
        return command

    async def _wait_answering(self) -> None:
        assert self._guard is not None
        answering = asyncio.create_task(_wait_live(self, timeout_s=self._settings.startup_timeout_s))
        ended = asyncio.create_task(self._guard.wait())
        try:
            await asyncio.wait({answering, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                problem = f"tritonserver ended with status {ended.result()} while starting"
            else:
                problem = answering.result()
        finally:
            for task in (answering, ended):
                task.cancel()
            await asyncio.gather(answering, ended, return_exceptions=True)
        if problem is not None:
            await self._end()
            raise TritonStartError("\n".join([problem, *self._log_tail]))

    async def _forward_log(self, process: asyncio.subprocess.Process) -> None:
        """Triton prints to our log; reading ends with the process."""
        assert process.stdout is not None
        unfinished = b""
        while block := await process.stdout.read(65536):
            *lines, unfinished = (unfinished + block).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self._log_tail.append(text)
                _logger.debug("triton printed", extra={"fields": {"line": text}})

    async def _end(self) -> None:
        """Stops the process, if any, and waits until nothing is left of it."""
        self._release_control()
        if self._guard is not None:
            try:
                # The guard kills after grace_s by itself; the rest is for the reaping.
                await asyncio.wait_for(self._guard.wait(), self._settings.grace_s + 10.0)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._guard.kill()
                await self._guard.wait()
            self._guard = None
        if self._log_task is not None:
            await asyncio.wait({self._log_task}, timeout=1.0)
            self._log_task.cancel()
            self._log_task = None

    def _release_control(self) -> None:
        if self._control_fd is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control_fd, b"k")
            os.close(self._control_fd)
            self._control_fd = None


class ExternalTriton:
    """A tritonserver that somebody else runs, in explicit model control mode, with a repository both can reach.

    Other services may use it too: each has models of its own in it.
    """

    def __init__(
        self,
        address: str,
        control_address: str,
        repository: Path,
        *,
        control_key: str = "",
        owner: str | None = None,
        shares_memory: bool = False,
        startup_timeout_s: float = 60.0,
        poll_interval_s: float = 1.0,
    ) -> None:
        """`owner` is that of the process that loads; None is this one, which finds itself a number."""
        self._address = address
        self._control_address = control_address
        self._repository = repository
        self._control_key = control_key
        self._owner = owner
        self._shares_memory = shares_memory
        self._tenancy: Tenancy | None = None
        self._startup_timeout_s = startup_timeout_s
        self._poll_interval_s = poll_interval_s
        self._abandoned = False

    @property
    def address(self) -> str:
        return self._address

    @property
    def control_address(self) -> str:
        return self._control_address

    @property
    def control_key(self) -> str:
        return self._control_key

    @property
    def metrics_address(self) -> str | None:
        return None

    @property
    def repository(self) -> Path:
        return self._repository

    @property
    def shares_memory(self) -> bool:
        return self._shares_memory

    @property
    def owner(self) -> str:
        if self._owner is not None:
            return self._owner
        assert self._tenancy is not None
        return self._tenancy.owner

    async def start(self) -> None:
        self._abandoned = False
        over_network = [address for address in (self._address, self._control_address) if not is_unix(address)]
        await asyncio.to_thread(warn_of_public_triton, over_network)
        problem = await _wait_live(self, timeout_s=self._startup_timeout_s)
        if problem is not None:
            raise TritonStartError(problem)
        if self._owner is None and self._tenancy is None:
            try:
                self._tenancy = await asyncio.to_thread(Tenancy.take, self._repository)
            except TenancyError as error:
                raise TritonStartError(str(error)) from None
            await self._remove_leftovers(self._tenancy)

    async def wait_lost(self) -> str:
        client = TritonClient(self._address, self._control_address)
        try:
            while await client.is_live(timeout_s=_LIVE_TIMEOUT_S):
                if self._abandoned:
                    return f"tritonserver at {self._address} answers wrongly"
                await asyncio.sleep(self._poll_interval_s)
        finally:
            client.close()
        return f"tritonserver at {self._address} does not answer"

    async def end_model(self, model: str) -> None:
        """Its owner's processes are not ours to end, and may not be visible from here."""

    async def abandon(self) -> None:
        """Its owner decides when it restarts; here its models are brought up anew."""
        self._abandoned = True

    async def stop(self) -> None:
        """Its owner decides when it stops; another service may have our number."""
        if self._tenancy is not None:
            self._tenancy.let_go()
            self._tenancy = None

    async def _remove_leftovers(self, tenancy: Tenancy) -> None:
        """Of services that were killed, before anybody asks what memory is free."""
        client = TritonClient(self._address, self._control_address, control_key=self._control_key)
        try:
            for model in tenancy.leftovers:
                _logger.warning("model left by a service that is gone", extra={"fields": {"model": model}})
                await unload_model(client, model)
                remove_model(self._repository, model)
        finally:
            client.close()
            tenancy.forget_leftovers()


def _kill_stubs(model_directory: str) -> None:
    """SIGKILL for the processes that run the model of a directory of the repository."""
    source = os.fsencode(f"{model_directory}/")
    for process in _PROC.glob("[0-9]*"):
        # Of a process that has ended meanwhile, or of somebody else, nothing is read.
        with contextlib.suppress(OSError):
            program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
            if program.endswith(_STUB) and any(argument.startswith(source) for argument in arguments):
                os.kill(int(process.name), signal.SIGKILL)


async def _wait_live(server: TritonServer, *, timeout_s: float) -> str | None:
    """None once the server answers, else that it does not."""
    client = TritonClient(server.address, server.control_address)
    try:
        async with asyncio.timeout(timeout_s):
            while not await client.is_live(timeout_s=_LIVE_TIMEOUT_S):  # noqa: ASYNC110  # no event crosses processes
                await asyncio.sleep(_START_POLL_INTERVAL_S)
    except TimeoutError:
        return f"tritonserver at {server.address} did not answer within {timeout_s:g} s"
    finally:
        client.close()
    return None


def _run_directory() -> Path:
    """A new directory that only this user can enter, with room for a socket's name."""
    directory = Path(tempfile.mkdtemp(prefix="premotor-triton-"))
    if len(os.fsencode(directory)) > _MAX_SOCKET_PATH_BYTES - len("/metrics.sock"):
        directory.rmdir()
        raise TritonStartError(
            f"{directory} is too long a path for a unix socket: set TMPDIR to a directory with a shorter one"
        )
    return directory
