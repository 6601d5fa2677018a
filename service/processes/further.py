"""A further gateway process of a service: answers robots on the port of the first one, until that one ends.

Owns its start (attach to Triton and registry, follow, then listen), its answers to the first process and its end. Has
no admin plane, starts no Triton and loads no model. Does not own when it runs (supervision.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from service.artifacts import ArtifactStore
from service.collection import exempt_what_is_there
from service.credentials import ServingTls, TokenCache, read_tls
from service.logs import configure_logging
from service.observability.process_metrics import dump_metrics
from service.observability.tracing import otlp_tracing
from service.processes.gateway import GatewayProcess, Listening
from service.processes.lines import ALIVE, METRICS, MODEL_DEAD, READY, FurtherGatewayConfig
from service.processes.stopping import stops_on_signals, unless
from service.registry import Registry, open_database
from service.rollout import FollowerSettings, LeaseSettings, RolloutSettings
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.models import AnothersModels
from service.triton.server import ExternalTriton

# A revision that cannot be had keeps no process from answering for the others.
_SETTLE_TIMEOUT_S = 60.0
# What ending may take beyond draining.
_END_TIMEOUT_S = 15.0

_logger = logging.getLogger(__name__)


def run() -> int:
    """Serves as the first line on stdin says, until stdin ends; 1 when it could not."""
    # Nothing else may write between the lines that the first process reads.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Unbuffered: a thread that waits in a buffer's lock would break the interpreter's end.
    questions = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    first = questions.readline()
    if not first:
        return 1
    config = FurtherGatewayConfig.from_json(first)
    configure_logging(config.log_level, process=config.process)
    try:
        asyncio.run(_serve(config, questions, answers))
    except Exception:  # the edge: the first process reads the status, an operator the log
        _logger.exception("gateway process failed")
        return 1
    return 0


async def _serve(config: FurtherGatewayConfig, questions: IO[bytes], answers: IO[bytes]) -> None:
    stopping = stops_on_signals()
    further = FurtherGateway(config)
    first = FirstProcess(answers, further, ended=stopping.set)
    further.report_dead = lambda revision: first.tell({"event": MODEL_DEAD, "revision": revision})
    first.follow(questions, leave_s=config.drain_s + _END_TIMEOUT_S)
    try:
        if await unless(stopping, further.start()):
            first.tell({"event": READY})
            await stopping.wait()
    finally:
        await further.stop()
        first.close()


class FurtherGateway:
    """Starts once; `stop` may be called in any state."""

    def __init__(self, config: FurtherGatewayConfig) -> None:
        self._config = config
        self.report_dead: Callable[[str], None] = lambda revision: None
        self._registry: Registry | None = None
        self._backend: TritonBackend | None = None
        self._process: GatewayProcess | None = None
        self._tracing = otlp_tracing(config.otlp_endpoint) if config.otlp_endpoint else None
        self._certificates: asyncio.Task[None] | None = None

    async def start(self) -> bool:
        """Listens last: a robot that connects is answered. True once it does."""
        config = self._config
        artifacts = ArtifactStore(root=config.store, cache=config.cache)
        for directory in config.named:
            artifacts.name(directory)
        self._registry = Registry(await asyncio.to_thread(open_database, config.registry))
        tokens = TokenCache()
        await asyncio.to_thread(tokens.refresh, self._registry)
        tls = None
        if config.tls is not None:
            tls = ServingTls(await asyncio.to_thread(read_tls, config.tls))
            self._certificates = asyncio.create_task(tls.follow(), name="certificates")
        self._backend = TritonBackend(
            ExternalTriton(
                config.triton_address,
                config.triton_control_address,
                config.triton_repository,
                owner=config.triton_owner,
                shares_memory=config.triton_shares_memory,
            ),
            config.model,
            # As long as the first process may take, which says when it failed.
            SupervisionSettings(load_timeout_s=config.load_timeout_s, heartbeat_interval_s=config.idle_probe_s),
            models=AnothersModels(lambda revision: self.report_dead(revision)),
        )
        self._process = GatewayProcess(
            gateway_id=config.gateway_id,
            registry=self._registry,
            tokens=tokens,
            backend=self._backend,
            artifacts=artifacts,
            model=config.model,
            follower_settings=FollowerSettings(lease=LeaseSettings(fence=config.fence)),
            rollout_settings=RolloutSettings(
                load_timeout_s=config.load_timeout_s, drain_timeout_s=config.drain_timeout_s
            ),
            own_process=True,
            loads=False,
            episode_idle_s=config.episode_idle_s,
            listening=Listening(host=config.host, port=config.port, openpi_port=config.openpi_port, shares_ports=True),
            observation_map=config.observation_map,
            openpi_policy=config.openpi_policy,
            tls=tls,
            tracing=self._tracing,
        )
        self._process.follower.address = f"{config.host}:{config.port}"
        await self._backend.start()
        await self._process.follow()
        await self._process.follower.settled(timeout_s=_SETTLE_TIMEOUT_S)
        await self._process.listen()
        exempt_what_is_there()
        return True

    def metrics(self) -> list[dict[str, Any]]:
        return dump_metrics(self._process.metrics) if self._process is not None else []

    async def stop(self) -> None:
        if self._process is not None:
            await self._process.drain(self._config.drain_s)
            await self._process.leave()
        if self._backend is not None:
            await self._backend.close()
        if self._tracing is not None:
            await self._tracing.close()
        if self._certificates is not None:
            self._certificates.cancel()
            await asyncio.gather(self._certificates, return_exceptions=True)
        if self._registry is not None:
            self._registry.close()


class FirstProcess:
    """The one that started this process, heard and told by lines."""

    def __init__(self, answers: IO[bytes], further: FurtherGateway, *, ended: Callable[[], None]) -> None:
        """`ended` is called on the event loop once it is gone, or wants this process to go."""
        self._answers, self._further, self._ended = answers, further, ended
        self._loop = asyncio.get_running_loop()
        self._outgoing: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        # Of its own: a full pipe must keep no robot waiting, and nobody else's work an answer.
        threading.Thread(target=self._write, name="answers", daemon=True).start()

    def tell(self, line: dict[str, Any]) -> None:
        self._outgoing.put(line)

    def follow(self, questions: IO[bytes], *, leave_s: float) -> None:
        """Reads in a thread of its own: what ends this process after `leave_s` may be that its event loop stands."""

        def read() -> None:
            try:
                for line in questions:
                    self._loop.call_soon_threadsafe(self._hear, json.loads(line))
                self._loop.call_soon_threadsafe(self._ended)
            except RuntimeError:  # the loop has ended by itself
                return
            time.sleep(leave_s)
            os._exit(1)

        threading.Thread(target=read, name="first process", daemon=True).start()

    def close(self) -> None:
        self._outgoing.put(None)

    def _hear(self, question: dict[str, Any]) -> None:
        if question["ask"] == METRICS:
            self.tell({"id": question["id"], METRICS: self._further.metrics()})
        elif question["ask"] == ALIVE:
            self.tell({"id": question["id"]})

    def _write(self) -> None:
        while (line := self._outgoing.get()) is not None:
            try:
                self._answers.write(json.dumps(line).encode() + b"\n")
            except BrokenPipeError:
                with suppress(RuntimeError):  # the loop has ended by itself
                    self._loop.call_soon_threadsafe(self._ended)
                return
