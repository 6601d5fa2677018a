"""Metrics as scrapers ask for them: text, OpenMetrics, and Triton's own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.admin import create_admin_app
from service.admin.dependencies import FurtherMetrics
from service.backend import BackendUnavailableError

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"


@pytest.fixture
def fetch(kit) -> Callable[..., Awaitable[httpx.Response]]:
    async def get(
        path: str,
        *,
        accept: str = "*/*",
        triton: Callable[[], Awaitable[bytes]] | None = None,
        further: FurtherMetrics | None = None,
        collector: Collector | None = None,
    ):
        registry = CollectorRegistry()
        if collector is not None:
            registry.register(collector)
        Histogram("premotor_wait_seconds", "Waits.", registry=registry).observe(0.2, {"trace_id": "4bf9"})
        app = create_admin_app(
            policies=kit.policies,
            backend=kit.backend(),
            metrics_registry=registry,
            fleet=None,  # None of these routes asks it.
            triton_metrics=triton,
            further_metrics=further,
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
            return await client.get(path, headers={"accept": accept})

    return get


async def test_exemplars_come_with_openmetrics_and_only_to_those_who_ask_for_it(fetch):
    asked = await fetch("/metrics", accept=OPENMETRICS)
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert '# {trace_id="4bf9"} 0.2' in asked.text and asked.text.endswith("# EOF\n")
    plain = await fetch("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert "trace_id" not in plain.text and "premotor_wait_seconds_count 1.0" in plain.text


async def test_tritons_metrics_are_handed_on_as_they_are(fetch):
    async def triton() -> bytes:
        return b"nv_inference_count 7\n"

    answer = await fetch("/metrics/triton", triton=triton)
    assert (answer.status_code, answer.text) == (200, "nv_inference_count 7\n")
    assert answer.headers["content-type"].startswith("text/plain")


async def test_a_triton_that_restarts_is_said_to_be_away_and_none_to_be_none(fetch):
    async def away() -> bytes:
        raise BackendUnavailableError("Triton's metrics at unix:/tmp/secret: gone")

    answer = await fetch("/metrics/triton", triton=away)
    assert answer.status_code == 503 and "retry-after" in answer.headers and "secret" not in answer.text
    none = await fetch("/metrics/triton")
    assert (none.status_code, none.json()["message"]) == (404, "no Triton runs below this service")


async def test_metrics_of_several_processes_say_which_counted_and_which_did_not_answer(fetch):
    other = CollectorRegistry()
    Histogram("premotor_wait_seconds", "Waits.", registry=other).observe(3.0, {"trace_id": "cafe"})

    async def further():
        return {1: list(other.collect()), 2: None}

    plain = (await fetch("/metrics", further=further)).text
    assert 'premotor_wait_seconds_sum{process="0"} 0.2' in plain
    assert 'premotor_wait_seconds_sum{process="1"} 3.0' in plain
    assert 'premotor_gateway_process_up{process="1"} 1.0' in plain
    assert 'premotor_gateway_process_up{process="2"} 0.0' in plain
    assert plain.count("# TYPE premotor_wait_seconds histogram") == 1
    asked = (await fetch("/metrics", accept=OPENMETRICS, further=further)).text
    assert '# {trace_id="4bf9"} 0.2' in asked and '# {trace_id="cafe"} 3.0' in asked
    assert asked.count("# TYPE premotor_wait_seconds histogram") == 1


class NotesThread(Collector):
    """As what reads the episodes in progress, it belongs to the event loop."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()

    def collect(self) -> Iterator[Metric]:
        self.threads.add(threading.current_thread())
        yield Metric("threads", "Threads.", "gauge")


async def test_metrics_are_collected_on_the_event_loop_also_where_several_processes_have_some(fetch):
    async def further():
        return {1: None}

    for beside in (None, further):
        collector = NotesThread()
        assert (await fetch("/metrics", further=beside, collector=collector)).status_code == 200
        assert collector.threads == {threading.current_thread()}


async def test_one_process_alone_has_no_label_of_processes(fetch):
    assert "process" not in (await fetch("/metrics")).text
