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
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from service.triton import guard
from service.triton.installation import TritonInstallation

_logger = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
_START_ATTEMPTS = 3
# How much of what it printed explains a failed start, and a sudden end.
_LOG_TAIL_LINES = 30
_LOSS_TAIL_LINES = 3
# Enough for the frames of a batch, so that no request waits for the region to grow.
_SHM_BYTES_PER_MODEL = 16 * 1024 * 1024


class TritonStartError(Exception):
    """tritonserver did not come up. The message ends with what it last printed."""


class TritonServer(Protocol):
    """A tritonserver that models can be loaded into."""

    @property
    def address(self) -> str:
        """host:port of its gRPC service; changes with every start."""
        ...

    @property
    def repository(self) -> Path:
        """Its model repository, writable from here."""
        ...

    async def start(self) -> None:
        """Returns once it answers, without models. Raises TritonStartError."""
        ...

    async def wait_lost(self) -> str:
        """Returns why, once it no longer answers."""
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
    startup_timeout_s: float = 60.0
    # What still runs this long after a stop is killed.
    grace_s: float = 5.0


class TritonProcess:
    """A tritonserver of our own, on loopback. One process at a time; `start` may be called again after it was lost."""

    def __init__(self, installation: TritonInstallation, settings: TritonProcessSettings) -> None:
        self._installation = installation
        self._settings = settings
        self._directory = Path(tempfile.mkdtemp(prefix="premotor-triton-"))
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
        self._address = ""
        self._metrics_address = ""

    @property
    def address(self) -> str:
        return self._address

    @property
    def metrics_address(self) -> str:
        """host:port of Triton's own Prometheus metrics."""
        return self._metrics_address

    @property
    def repository(self) -> Path:
        return self._repository

    async def start(self) -> None:
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                await self._start_once()
            except TritonStartError as error:
                # Ports are picked free and bound later: somebody else may have been quicker.
                if "already in use" not in str(error) or attempt == _START_ATTEMPTS:
                    raise
            else:
                return

    async def wait_lost(self) -> str:
        if self._guard is None:
            return "tritonserver is not running"
        status = await self._guard.wait()
        return "; ".join([f"tritonserver ended with status {status}", *list(self._log_tail)[-_LOSS_TAIL_LINES:]])

    async def abandon(self) -> None:
        self._release_control()

    async def stop(self) -> None:
        await self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _start_once(self) -> None:
        await self._end()
        grpc_port, metrics_port = _free_ports(2)
        server_id = guard.SHM_PREFIX + secrets.token_hex(6)
        self._address = f"{_LOOPBACK}:{grpc_port}"
        self._metrics_address = f"{_LOOPBACK}:{metrics_port}"
        self._log_tail.clear()
        read_fd, write_fd = os.pipe()
        try:
            self._guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, str(read_fd), f"{server_id}-", str(self._directory)),
                *(str(self._settings.grace_s), *self._command(server_id, grpc_port, metrics_port)),
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
            await self._wait_answering(server_id)
        except BaseException:
            await self._end()
            raise
        _logger.info("triton started", extra={"fields": {"address": self._address, "pid": self._guard.pid}})

    def _command(self, server_id: str, grpc_port: int, metrics_port: int) -> list[str]:
        command = [
            str(self._installation.executable),
            f"--id={server_id}",
            f"--model-repository={self._repository}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            f"--grpc-address={_LOOPBACK}",
            f"--grpc-port={grpc_port}",
            "--allow-http=false",
            f"--metrics-address={_LOOPBACK}",
            f"--metrics-port={metrics_port}",
            # Whoever stops Triton has drained what was in flight; only unloading is left, which the guard does better.
            "--exit-timeout-secs=1",
            # Names that no other process uses, so that what a crash leaves in /dev/shm can be told from everybody
            # else's.
            f"--backend-config=python,shm-region-prefix-name={server_id}-",
            f"--backend-config=python,shm-default-byte-size={_SHM_BYTES_PER_MODEL}",
        ]
        if self._backends is not None:
            command.append(f"--backend-directory={self._backends}")
        return command

    async def _wait_answering(self, server_id: str) -> None:
        assert self._guard is not None
        answering = asyncio.create_task(
            _wait_ready(self._address, server_id, timeout_s=self._settings.startup_timeout_s)
        )
        ended = asyncio.create_task(self._guard.wait())
        try:
            await asyncio.wait({answering, ended}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                problem = answering.result()
            else:
                problem = f"tritonserver ended with status {ended.result()} while starting"
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
    """A tritonserver that somebody else runs, in explicit model control mode, with a repository both can reach."""

    def __init__(
        self, address: str, repository: Path, *, startup_timeout_s: float = 60.0, poll_interval_s: float = 1.0
    ) -> None:
        self._address = address
        self._repository = repository
        self._startup_timeout_s = startup_timeout_s
        self._poll_interval_s = poll_interval_s

    @property
    def address(self) -> str:
        return self._address

    @property
    def repository(self) -> Path:
        return self._repository

    async def start(self) -> None:
        problem = await _wait_ready(self._address, None, timeout_s=self._startup_timeout_s)
        if problem is not None:
            raise TritonStartError(problem)

    async def wait_lost(self) -> str:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while True:
                await asyncio.sleep(self._poll_interval_s)
                try:
                    await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5.0)
                except grpc.aio.AioRpcError as error:
                    return f"tritonserver at {self._address} does not answer: {error.code().name}"

    async def abandon(self) -> None:
        """Nothing: its owner decides when it restarts."""

    async def stop(self) -> None:
        """Nothing: its owner decides when it stops."""


async def _wait_ready(address: str, server_id: str | None, *, timeout_s: float) -> str | None:
    """None once the server answers under the id it was started with, else what is wrong."""
    # The default backoff of a channel, made for networks, would add seconds to a start on loopback.
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ServerMetadataRequest()
        try:
            metadata = await stub.ServerMetadata(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            return f"tritonserver at {address} did not answer within {timeout_s:g} s: {error.code().name}"
    if server_id is not None and metadata.name != server_id:
        return f"{address} is already in use by {metadata.name!r}"
    return None


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind((_LOOPBACK, 0))
        return [bound.getsockname()[1] for bound in sockets]
