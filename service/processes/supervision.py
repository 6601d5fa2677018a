"""The further gateway processes of a service: started, asked, started again, ended.

Owns their number and their lives; each is a gateway of the fleet of its own, and one that dies is taken out of it.
Does not own what they do (further.py). Needs a kernel that spreads the connections of one port over processes, as
Linux does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import Metric

from service.observability.process_metrics import load_metrics
from service.processes.lines import ALIVE, MAX_LINE_BYTES, METRICS, MODEL_DEAD, READY, FurtherGatewayConfig

_logger = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "service", "further-gateway")
# The number of a process and its name in the fleet to what it goes by.
MakeConfig = Callable[[int, str], FurtherGatewayConfig]


class FurtherGatewayError(Exception):
    """A further gateway process could not be had."""


@dataclass(frozen=True, kw_only=True)
class FurtherGatewaySettings:
    # One that is not ready by then is killed; the first time it fails the start of the service.
    start_timeout_s: float = 120.0
    # One that does not answer for so long, though nothing is asked of it but that, is killed.
    alive_interval_s: float = 5.0
    alive_timeout_s: float = 15.0
    metrics_timeout_s: float = 2.0
    # Doubles from the first to the last with every end in a row; the first start again is immediate.
    first_backoff_s: float = 0.5
    last_backoff_s: float = 30.0
    stable_after_s: float = 60.0
    # What ending may take beyond draining, before it is killed.
    end_timeout_s: float = 20.0


def check_ports_can_be_shared() -> None:
    """Raises ValueError where the kernel does not spread connections over processes."""
    if sys.platform != "linux":
        raise ValueError(f"several gateways on one port need Linux (SO_REUSEPORT), this is {sys.platform}")


def check_nobody_listens(host: str, port: int) -> None:
    """Raises OSError when somebody does: on a port that is shared, listening itself would not fail."""
    if port == 0:
        return
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None


class FurtherGateways:
    """`start` once, `stop` in any state."""

    def __init__(
        self,
        number: int,
        make_config: MakeConfig,
        *,
        left: Callable[[str], Awaitable[None]],
        model_dead: Callable[[str], None],
        settings: FurtherGatewaySettings | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`left` is told which gateway of the fleet is gone, `model_dead` which revision's model one found dead."""
        settings = settings or FurtherGatewaySettings()
        self._settings = settings
        self._processes = [
            _Supervised(process, make_config, command, left=left, model_dead=model_dead, settings=settings)
            for process in range(1, number + 1)
        ]

    async def start(self) -> None:
        """Returns once all of them answer robots. Raises FurtherGatewayError."""
        for process in self._processes:
            process.start()
        await asyncio.gather(*(process.started() for process in self._processes))

    async def metrics(self) -> dict[int, list[Metric] | None]:
        """By number of the process; None for one that does not say."""
        told = await asyncio.gather(*(process.metrics() for process in self._processes))
        return {process.number: families for process, families in zip(self._processes, told, strict=True)}

    async def stop(self, drain_s: float) -> None:
        """Tells all of them to drain, and kills what is still there some time after that."""
        await asyncio.gather(*(process.stop(drain_s) for process in self._processes))


class _Supervised:
    """One of them, through as many lives as it takes."""

    def __init__(
        self,
        number: int,
        make_config: MakeConfig,
        command: Sequence[str],
        *,
        left: Callable[[str], Awaitable[None]],
        model_dead: Callable[[str], None],
        settings: FurtherGatewaySettings,
    ) -> None:
        self.number = number
        self._command = command
        self._make_config, self._left, self._model_dead, self._settings = make_config, left, model_dead, settings
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        # While the present life answers robots.
        self._ready = asyncio.Event()
        self._stopping = False
        self._child: asyncio.subprocess.Process | None = None
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"gateway process {self.number}")

    async def started(self) -> None:
        """Raises FurtherGatewayError when its first life was none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._first.wait()
        if not self._ready.is_set():
            raise FurtherGatewayError(f"gateway process {self.number} did not become ready; its log lines say why")

    async def metrics(self) -> list[Metric] | None:
        try:
            answer = await self._ask(METRICS, timeout_s=self._settings.metrics_timeout_s)
        except (FurtherGatewayError, TimeoutError):
            return None
        return load_metrics(answer[METRICS])

    async def stop(self, drain_s: float) -> None:
        self._stopping = True
        if self._task is None:
            return
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
            await asyncio.wait({self._task}, timeout=drain_s + self._settings.end_timeout_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        failures = 0
        while not self._stopping:
            began_s = time.monotonic()
            status = None
            try:
                status = await self._live()
            except Exception:  # the edge: it is started again whatever one life met
                _logger.exception("gateway process failed")
            if self._stopping:
                return
            self._first.set()
            _logger.error("gateway process ended", extra={"fields": {"process": self.number, "status": status}})
            if time.monotonic() - began_s >= self._settings.stable_after_s:
                failures = 0
            await asyncio.sleep(self._backoff_s(failures))
            failures += 1

    def _backoff_s(self, failures: int) -> float:
        if failures == 0:
            return 0.0
        return min(self._settings.first_backoff_s * 2 ** (failures - 1), self._settings.last_backoff_s)

    async def _live(self) -> int | None:
        """From its start to its end; its exit status."""
        gateway_id = secrets.token_hex(8)
        child = self._child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            # A Ctrl-C in the terminal is for the first process, which then tells the others.
            start_new_session=True,
        )
        assert child.stdin is not None
        watching = asyncio.create_task(self._watch(child), name=f"watch gateway process {self.number}")
        try:
            self._say(self._make_config(self.number, gateway_id).to_json())
            await self._read(child)
            await child.wait()
        finally:
            watching.cancel()
            self._child = None
            self._ready.clear()
            for question in self._asked.values():
                if not question.done():
                    question.set_exception(FurtherGatewayError(f"gateway process {self.number} has ended"))
            self._asked.clear()
            child.stdin.close()
            if child.returncode is None:
                child.kill()
                await child.wait()
            await asyncio.gather(watching, return_exceptions=True)
            await self._left(gateway_id)
        return child.returncode

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        while line := await child.stdout.readline():
            told = json.loads(line)
            if (question := self._asked.pop(told.get("id", -1), None)) is not None and not question.done():
                question.set_result(told)
            elif told.get("event") == READY:
                self._ready.set()
                self._first.set()
                fields = {"process": self.number, "pid": child.pid}
                _logger.info("gateway process ready", extra={"fields": fields})
            elif told.get("event") == MODEL_DEAD:
                self._model_dead(told["revision"])

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        """Kills one that never becomes ready, or no longer answers: the kernel would go on giving it connections."""
        fault = "gateway process does not become ready"
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._ready.wait()
            fault = "gateway process hangs"
            while True:
                await asyncio.sleep(self._settings.alive_interval_s)
                await self._ask(ALIVE, timeout_s=self._settings.alive_timeout_s)
        except FurtherGatewayError:
            return
        except TimeoutError:
            # One that drains is asked in vain, for its stdin has ended: `stop` waits for it.
            if not self._stopping:
                _logger.error(fault, extra={"fields": {"process": self.number, "pid": child.pid}})
                child.kill()

    async def _ask(self, what: str, *, timeout_s: float) -> dict[str, Any]:
        """Raises TimeoutError, or FurtherGatewayError when there is no process to ask."""
        if self._child is None or not self._ready.is_set():
            raise FurtherGatewayError(f"gateway process {self.number} is not there")
        number = next(self._ids)
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        self._say(json.dumps({"ask": what, "id": number}))
        try:
            async with asyncio.timeout(timeout_s):
                return await answered
        finally:
            self._asked.pop(number, None)

    def _say(self, line: str) -> None:
        """Short lines, few of them: what a hung process does not read stays in the buffer until it is killed."""
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")
