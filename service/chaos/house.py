"""A service that may be killed: started again on the same ports and the same state, as a supervisor would.

Owns the process and finding what runs below it. Does not own why it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from service.bench.served import POLICY, ServiceStartError
from service.model_settings import BackendKind, ModelSettings

_START_TIMEOUT_S = 120.0


class House:
    """`start` again after a kill; `stop` at the end."""

    def __init__(
        self,
        checkpoint: Path,
        model: ModelSettings,
        directory: Path,
        *,
        backend: BackendKind = "triton",
        arguments: Sequence[str] = (),
    ) -> None:
        self._checkpoint, self._model, self._backend = checkpoint, model, backend
        self._log = directory / "service.log"
        self.state = directory / "state"
        self._arguments = arguments
        # The system picks them once; a restart takes the same, so that robots find it again.
        self._ports = ("0", "0")
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc_address = ""
        self.admin_url = ""

    async def start(self) -> None:
        """Raises ServiceStartError with what it last logged."""
        command = [
            *(sys.executable, "-m", "service", "--log-level", "warning", "serve", "--backend", self._backend),
            *("--policy", f"{POLICY}={self._checkpoint}", "--state", str(self.state)),
            *("--port", self._ports[0], "--admin-port", self._ports[1]),
            *("--device", self._model.device, "--threads", str(self._model.threads), *self._arguments),
        ]
        with self._log.open("ab") as log:
            # In this thread, so that nothing cancels it once there is a process.
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)  # noqa: ASYNC220
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), _START_TIMEOUT_S)
            ready = json.loads(line)
        except (TimeoutError, ValueError):
            await self.stop()
            tail = self._log.read_bytes()[-4000:].decode(errors="replace")
            raise ServiceStartError(f"the service did not become ready\n{tail}") from None
        self.grpc_address, self.admin_url = ready["grpc"], ready["admin"]
        self._ports = (self.grpc_address.rsplit(":", 1)[1], self.admin_url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As a crash does: nothing of it gets to say goodbye."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10.0)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def kill_triton(self) -> bool:
        """The tritonserver below the service; False when there is none just now."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name() == "tritonserver":
                        child.send_signal(signal.SIGKILL)
                        return True
        return False

    async def stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 40.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
        assert process.stdout is not None
        process.stdout.close()
