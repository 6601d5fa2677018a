"""`chaos fuzz`: malformed requests on both wires, and the service must answer each, live on and not grow.

Owns the asking on several connections, what counts as an answer, and the process's memory. Does not own what is
malformed (mutations.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from premotor.v1 import policy_pb2
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, Served, served
from service.chaos.mutations import mutated_frame, mutated_request, random_metadata
from service.chaos.robots import grpc_status
from service.model_settings import BackendKind, ModelSettings
from service.openpi.limits import OpenpiLimits
from service.openpi.observation_map import ObservationMap
from service.openpi.wire import pack, unpack
from service.probe import read_probe
from service.revision import Revision, read_revision

MAX_GROWTH = 0.05
# One request in so many is as a robot sends it, and must get its chunk.
_VALID_EVERY = 50
_DEADLINE_S = 10.0
# After the deadline: whoever has heard nothing by then never will.
_HANG_S = _DEADLINE_S + 5.0
_RECONNECT_S = 0.1
_WARM_UP = 0.1
_MAX_EXAMPLES = 20
_STATUS_NAMES = frozenset(code.name for code in grpc.StatusCode)
# How a websocket ends that was broken off, or whose server failed.
_UNTYPED_CLOSES = (1006, 1011)


@dataclass(frozen=True, kw_only=True)
class FuzzSettings:
    checkpoint: Path
    requests: int = 100_000
    connections: int = 8
    seed: int = 0
    backend: BackendKind = "local"
    model: ModelSettings

    def __post_init__(self) -> None:
        if self.requests < 100 or self.connections < 2:
            raise ValueError(
                f"requests is {self.requests}, expected at least 100; connections {self.connections}, at least 2"
            )


@dataclass(kw_only=True)
class _Tally:
    """What came back so far, by wire and status."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: {"grpc": Counter(), "openpi": Counter()})
    num_requests: int = 0
    num_valid: int = 0
    hangs: int = 0
    untyped: int = 0
    # Valid requests without a chunk.
    valid_refused: int = 0
    # Of hangs, untyped and refused valid ones.
    examples: list[str] = field(default_factory=list)

    def add(self, wire: str, status: str, *, valid: bool, fault: str = "") -> None:
        self.num_requests += 1
        self.num_valid += valid
        self.statuses[wire][status] += 1
        self.hangs += fault == "hang"
        self.untyped += fault == "untyped"
        self.valid_refused += valid and status != "OK"
        if fault or (valid and status != "OK"):
            self.examples.append(f"{wire} {'valid' if valid else 'malformed'} request: {fault} {status}")
            del self.examples[_MAX_EXAMPLES:]


def measure_fuzz(settings: FuzzSettings) -> dict[str, Any]:
    """Raises RevisionError, ServiceStartError."""
    revision = read_revision(settings.checkpoint, policy=POLICY)
    observation_map = _observation_map(revision)
    with tempfile.TemporaryDirectory(prefix="premotor-chaos-") as directory:
        file = Path(directory) / "map.json"
        file.write_text(json.dumps(observation_map.to_json()))
        arguments = ("--openpi-port", "0", "--openpi-map", str(file))
        with served(settings.checkpoint, settings.model, backend=settings.backend, arguments=arguments) as service:
            return asyncio.run(_Fuzz(settings, service, revision, observation_map).run())


class _Fuzz:
    def __init__(
        self, settings: FuzzSettings, service: Served, revision: Revision, observation_map: ObservationMap
    ) -> None:
        self._settings, self._service = settings, service
        case = read_probe(revision)[0]
        self._requests = chunk_requests(revision, case, policy=POLICY)
        self._message = {
            **dict(zip(observation_map.images.values(), case.request.images, strict=True)),
            observation_map.state[0]: case.request.state,
            observation_map.instruction: case.request.instruction,
        }
        self._tally = _Tally()
        self._rss_after_warm_up_bytes = 0

    async def run(self) -> dict[str, Any]:
        started_s = time.perf_counter()
        halves = {"grpc": self._settings.requests // 2, "openpi": (self._settings.requests + 1) // 2}
        ask = {"grpc": self._ask_grpc, "openpi": self._ask_openpi}
        async with asyncio.TaskGroup() as asking:
            for wire, total in halves.items():
                numbers = iter(range(total))
                for worker in range(self._settings.connections // 2):
                    asking.create_task(ask[wire](worker, numbers))
        spent_s = time.perf_counter() - started_s
        return self._result(spent_s)

    async def _ask_grpc(self, worker: int, numbers: Iterator[int]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._service.grpc_address, options=options) as channel:
            predict = channel.unary_unary(
                "/premotor.v1.PolicyService/PredictChunk",
                response_deserializer=policy_pb2.PredictChunkResponse.FromString,
            )
            for number in self._alive(numbers):
                generator = random.Random(f"{self._settings.seed}/grpc/{number}")
                valid = number % _VALID_EVERY == 0
                request = policy_pb2.PredictChunkRequest()
                request.CopyFrom(self._requests[number % len(self._requests)])
                request.robot_id, request.request_id = f"fuzz-{worker}", str(number)
                content = request.SerializeToString() if valid else mutated_request(generator, request)
                metadata = () if valid else random_metadata(generator)
                status, fault = "OK", ""
                try:
                    async with asyncio.timeout(_HANG_S):
                        await predict(content, timeout=_DEADLINE_S, metadata=metadata)
                except grpc.aio.AioRpcError as failed:
                    status, fault = grpc_status(failed)
                except TimeoutError:
                    status, fault = "NONE", "hang"
                self._note("grpc", status, valid=valid, fault=fault)

    async def _ask_openpi(self, worker: int, numbers: Iterator[int]) -> None:
        """On one connection, and on another whenever the service closes it."""
        left = self._alive(numbers)
        while True:
            try:
                async with connect(self._service.openpi_url, max_size=None, compression=None) as socket:
                    async with asyncio.timeout(_HANG_S):
                        await socket.recv()  # the greeting
                    if await self._talk(socket, worker, left):
                        return
            except (OSError, WebSocketException) as error:
                # A service that dies takes a moment to be seen as dead; one that lives has no reason to refuse.
                if next(left, None) is None:
                    return
                self._note("openpi", type(error).__name__, valid=False, fault="untyped")
                await asyncio.sleep(_RECONNECT_S)

    async def _talk(self, socket: ClientConnection, worker: int, numbers: Iterator[int]) -> bool:
        """Whether there is nothing left to ask; False once the connection has closed."""
        for number in numbers:
            generator = random.Random(f"{self._settings.seed}/openpi/{number}")
            valid = number % _VALID_EVERY == 0
            # A session of its own: mutated frames choose some that others have too, and then supersede each other.
            message = {**self._message, "session_id": f"fuzz-{worker}"}
            frame = pack(message) if valid else mutated_frame(generator, self._message)
            try:
                async with asyncio.timeout(_HANG_S):
                    await socket.send(frame)
                    reply = await socket.recv()
            except TimeoutError:
                self._note("openpi", "NONE", valid=valid, fault="hang")
                return False
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd is not None else 1006
                self._note("openpi", f"CLOSED_{code}", valid=valid, fault="untyped" * (code in _UNTYPED_CLOSES))
                return False
            status = _openpi_status(reply)
            self._note("openpi", status, valid=valid, fault="" if status in (*_STATUS_NAMES, "DONE") else "untyped")
        return True

    def _alive(self, numbers: Iterator[int]) -> Iterator[int]:
        """What is left to ask, for as long as there is somebody to be asked."""
        for number in numbers:
            if self._service.process.poll() is not None:
                return
            yield number

    def _note(self, wire: str, status: str, *, valid: bool, fault: str) -> None:
        self._tally.add(wire, status, valid=valid, fault=fault)
        if self._tally.num_requests == max(1, int(_WARM_UP * self._settings.requests)):
            self._rss_after_warm_up_bytes = _resident_bytes(self._service.process.pid)
        if self._tally.num_requests % 10_000 == 0:
            print(f"chaos: {self._tally.num_requests} of {self._settings.requests} requests", file=sys.stderr)

    def _result(self, spent_s: float) -> dict[str, Any]:
        tally, crashed = self._tally, self._service.process.poll() is not None
        before = self._rss_after_warm_up_bytes
        after = 0 if crashed else _resident_bytes(self._service.process.pid)
        return {
            "requests": tally.num_requests,
            "crashes": int(crashed),
            "hangs": tally.hangs,
            "untyped": tally.untyped,
            "statuses": {wire: dict(counted.most_common()) for wire, counted in tally.statuses.items()},
            "valid_requests": tally.num_valid,
            "valid_refused": tally.valid_refused,
            "examples": tally.examples,
            "rss_after_warm_up_bytes": before,
            "rss_end_bytes": after,
            "rss_growth": after / before - 1 if before and after else None,
            "requests_per_s": tally.num_requests / spent_s,
            "seed": self._settings.seed,
            "backend": self._settings.backend,
        }


def _observation_map(revision: Revision) -> ObservationMap:
    """Of the body that the probe's first case is of, by our own names."""
    body = revision.description.embodiments[read_probe(revision)[0].request.embodiment_index]
    return ObservationMap(
        policy=POLICY,
        embodiment=body.name,
        images={camera.name: f"observation/{camera.name}" for camera in body.cameras},
        state=("observation/state",),
    )


def _openpi_status(reply: bytes | str) -> str:
    """A status, DONE for what asked for no chunk, or the beginning of what is neither."""
    if isinstance(reply, str):
        status, separator, _ = reply.partition(": ")
        return status if separator else "DONE" if reply == "reset successful" else reply[:40]
    message = unpack(reply, OpenpiLimits())
    if not isinstance(message, dict):
        return type(message).__name__
    if message.get("status") == "error":
        return message["error"]["code"]
    if isinstance(_actions(message), np.ndarray):
        return "OK"
    return "DONE" if message.get("status") == "ok" else str(list(message))[:40]


def _actions(message: Mapping[str, Any]) -> Any:
    return message["data"].get("actions") if isinstance(message.get("data"), dict) else message.get("actions")


def _resident_bytes(pid: int) -> int:
    """Of the service and all below it."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def missed_goals(result: dict[str, Any]) -> list[str]:
    missed = [
        f"{name} is {result[name]}, expected 0"
        for name in ("crashes", "hangs", "untyped", "valid_refused")
        if result[name]
    ]
    growth = result["rss_growth"]
    if growth is None or growth > MAX_GROWTH:
        grew = "is not known" if growth is None else f"grew by {growth:.1%}"
        missed.append(f"resident memory {grew}, at most {MAX_GROWTH:.0%}")
    return missed


def format_fuzz(result: dict[str, Any]) -> str:
    lines = [
        f"{wire:<7} " + ", ".join(f"{count} {status}" for status, count in counted.items())
        for wire, counted in result["statuses"].items()
    ]
    growth = "unknown" if result["rss_growth"] is None else f"{result['rss_growth']:+.1%}"
    lines.append(
        f"{result['requests']} requests, {result['requests_per_s']:.0f} a second: {result['crashes']} crashes, "
        f"{result['hangs']} hangs, {result['untyped']} answers without a type; {result['valid_requests']} were valid, "
        f"{result['valid_refused']} of these refused"
    )
    lines.append(
        f"resident memory {result['rss_after_warm_up_bytes'] / 1e6:.0f} MB after the first tenth, "
        f"{result['rss_end_bytes'] / 1e6:.0f} MB at the end: {growth} (at most {MAX_GROWTH:+.0%})"
    )
    return "\n".join(lines + result["examples"])
