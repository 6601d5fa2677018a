"""What robots under chaos count: a service that says nothing, or lets gRPC speak for it, is found out."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from premotor.v1 import policy_pb2, policy_pb2_grpc
from service.chaos.kill import lock_out, missed_goals
from service.chaos.robots import Question, Robots, Tally
from service.errors import DeadlineExpiredError
from service.gateway.refusal import abort, refuse

READER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=0.0, isolation_level=None)
for line in sys.stdin:
    started_s = time.perf_counter()
    connection.execute(line).fetchall()
    print(time.perf_counter() - started_s, flush=True)
"""


async def tally_of(answer: Callable[[Any, Any], Awaitable[Any]], *, is_down: bool = False) -> Tally:
    """What one robot counts of a service that answers so, until it has counted one request."""
    server = grpc.aio.server()
    servicer = type("Servicer", (policy_pb2_grpc.PolicyServiceServicer,), {"PredictChunk": answer})
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    question = Question(request=policy_pb2.PredictChunkRequest(), expected={"a": np.zeros((1, 1), np.float32)})
    robots = Robots(f"127.0.0.1:{port}", [question], num_robots=1, timeout_s=0.2)
    robots.gateway_is_down = is_down
    robots.start()
    try:
        async with asyncio.timeout(10):
            while not robots.tally.num_requests:  # noqa: ASYNC110  # the tally is all there is to see
                await asyncio.sleep(0.01)
        return await robots.stop()
    finally:
        await server.stop(0)


async def says_nothing(_self: Any, _request: Any, _context: Any) -> None:
    await asyncio.Event().wait()


async def says_that_it_is_late(_self: Any, _request: Any, context: Any) -> None:
    await abort(context, refuse(DeadlineExpiredError("the deadline passed"), None))


async def lets_grpc_speak(_self: Any, _request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the service is broken")


@pytest.mark.parametrize(
    ("answer", "status", "is_untyped"),
    [
        (says_nothing, "DEADLINE_EXCEEDED", True),
        (says_that_it_is_late, "DEADLINE_EXCEEDED", False),
        (lets_grpc_speak, "UNAVAILABLE", True),
    ],
)
async def test_only_what_the_service_says_itself_is_typed(answer, status, is_untyped):
    tally = await tally_of(answer)
    assert set(tally.failures) == {status}
    assert +tally.untyped == (tally.failures if is_untyped else {})


async def test_while_nobody_is_there_grpc_may_say_so():
    tally = await tally_of(lets_grpc_speak, is_down=True)
    assert tally.failures["UNAVAILABLE"] > 0 and not +tally.untyped


def test_an_untyped_error_misses_the_goal():
    result = {"recovered": True, "typed_errors": {"UNAVAILABLE": 3}, "untyped_errors": {}, "late": 0}
    result |= {"wrong_revision": 0, "registry_intact": True}
    assert missed_goals(result) == []
    (missed,) = missed_goals({**result, "untyped_errors": {"DEADLINE_EXCEEDED": 1}})
    assert "DEADLINE_EXCEEDED" in missed
    (missed,) = missed_goals({**result, "typed_errors": {"UNKNOWN": 1}})
    assert "UNKNOWN" in missed


@pytest.mark.skipif(sys.platform != "linux", reason="the locks are those of SQLite on Linux")
async def test_a_database_that_is_away_answers_neither_readers_nor_writers(tmp_path: Path):
    database = tmp_path / "registry.db"
    reader = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", READER, str(database)), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert reader.stdin is not None and reader.stdout is not None

    async def ask(sql: str) -> float:
        """Seconds until the other process had its answer."""
        assert reader.stdin is not None and reader.stdout is not None
        reader.stdin.write(f"{sql}\n".encode())
        return float(await asyncio.wait_for(reader.stdout.readline(), 10))

    for sql in ("PRAGMA journal_mode = WAL", "CREATE TABLE t (a)", "SELECT * FROM t"):
        await ask(sql)
    away = asyncio.create_task(lock_out(database, 1.0))
    await asyncio.sleep(0)
    assert await ask("SELECT * FROM t") > 0.5
    await away
    assert await ask("INSERT INTO t VALUES (1)") < 0.5
    reader.stdin.close()
    assert await asyncio.wait_for(reader.wait(), 10) == 0
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
