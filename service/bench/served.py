"""A service in a process of its own, for as long as a block lasts.

Owns starting `python -m service serve`, waiting for its ready line and stopping it. Does not own what is asked of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from service.model_settings import BackendKind, ModelSettings

POLICY = "measured"
_TAIL_BYTES = 4000


class ServiceStartError(Exception):
    """The service did not become ready. The message ends with what it last logged."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """Where a running service listens: host:port for gRPC, a URL for the admin plane."""

    grpc_address: str
    admin_url: str
    # Empty unless `arguments` asked for it.
    openpi_url: str
    process: subprocess.Popen[bytes]
    # Of its log, from the start.
    log_fd: int

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The fields of each warning of that name so far, or of what is worse."""
        # At an offset of its own: the service writes at the file's.
        lines = os.pread(self.log_fd, os.fstat(self.log_fd).st_size, 0).splitlines()
        found = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return [fields for fields in found if fields.get("event") == event]


@contextlib.contextmanager
def served(
    checkpoint: Path,
    model: ModelSettings,
    *,
    backend: BackendKind = "triton",
    start_timeout_s: float = 120.0,
    arguments: Sequence[str] = (),
    source: Path | None = None,
) -> Iterator[Served]:
    """Serves `checkpoint` as the policy POLICY on free loopback ports; SIGTERM at the end. Raises ServiceStartError.

    `arguments` are more of those of `serve`. `source` is the root of another checkout, whose service it then is.
    """
    command = [
        *(sys.executable, "-m", "service", "--log-level", "warning", "serve"),
        *("--policy", f"{POLICY}={checkpoint}", "--port", "0", "--admin-port", "0"),
        *("--device", model.device, "--dtype", model.dtype, "--threads", str(model.threads)),
        *("--max-batch-size", str(model.max_batch_size), "--max-queue-delay-us", str(model.max_queue_delay_us)),
        *("--batching", "on" if model.batching else "off", "--backend", backend, *arguments),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=source, env=_environment(source))
        try:
            assert process.stdout is not None
            ready = _ready_line(process, process.stdout, log, time.monotonic() + start_timeout_s)
            yield Served(
                grpc_address=ready["grpc"],
                admin_url=ready["admin"],
                openpi_url=ready.get("openpi", ""),
                process=process,
                log_fd=log.fileno(),
            )
        finally:
            _stop(process)


def _environment(source: Path | None) -> dict[str, str] | None:
    """With the packages of `source` before those that are installed; None is the environment as it is."""
    if source is None:
        return None
    places = (source, source / "protos", source / "clients" / "python")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(place.resolve()) for place in places)}


def _ready_line(
    process: subprocess.Popen[bytes], output: IO[bytes], log: IO[bytes], give_up_at_s: float
) -> dict[str, str]:
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        readable = selector.select(max(0.0, give_up_at_s - time.monotonic()))
    line = output.readline() if readable else b""
    if not line:
        status = "ended" if readable else "did not become ready in time"
        log.seek(0)
        tail = log.read()[-_TAIL_BYTES:].decode(errors="replace")
        raise ServiceStartError(f"the service (pid {process.pid}) {status}\n{tail}")
    return json.loads(line)


def _stop(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30.0)
        except subprocess.TimeoutExpired:
            process.kill()
