"""Robots of one id under two credentials are two robots: neither supersedes, pins or moves the other."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from premotor.v1 import policy_pb2
from service.gateway.answers import ChunkAnswerer
from service.gateway.limits import GatewayLimits
from service.gateway.metrics import GatewayMetrics


async def test_one_robot_id_of_two_callers_is_two_robots(kit):
    backend = kit.backend(room=1)
    hold = backend.holds[1] = asyncio.Event()
    with ThreadPoolExecutor(1) as threads:
        answerer = ChunkAnswerer(
            policies=kit.policies,
            backend=backend,
            limits=GatewayLimits(),
            metrics=GatewayMetrics(CollectorRegistry()),
            decode_threads=threads,
        )

        def ask(seed: int, caller: str) -> asyncio.Task:
            request = kit.request(request_id=str(seed), seed=seed)
            return asyncio.create_task(answerer.answer(request, timeout_s=5, caller=caller))

        inside = ask(1, "first")
        await backend.wait_for_requests(1)
        waiting = [ask(2, "first"), ask(3, "second"), ask(4, "second")]
        await asyncio.sleep(0)
        hold.set()
        answers = await asyncio.gather(inside, *waiting)
    superseded = policy_pb2.RequestError.Reason.REASON_SUPERSEDED
    assert [getattr(answer, "reason", None) == superseded for answer in answers] == [False, False, True, False]
