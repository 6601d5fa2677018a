"""Metrics on their way from one process to another."""

from __future__ import annotations

import json
import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from service.observability.process_metrics import ProcessesMetrics, dump_metrics, load_metrics


class Loaded:
    """What came over, as a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families = load_metrics(json.loads(json.dumps(dump_metrics(registry))))

    def collect(self):
        return self._families


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("requests", "Requests.", ("policy",), registry=made).labels("a").inc(3, {"trace_id": "4bf9"})
    Gauge("lease_seconds", "Lease.", registry=made).set(math.inf)
    Histogram("wait_seconds", "Waits.", ("policy",), registry=made).labels("b").observe(0.2, {"trace_id": "cafe"})
    return made


def test_what_comes_over_is_written_out_as_it_was():
    made = registry()
    for encode in (generate_latest, openmetrics.generate_latest):
        assert encode(Loaded(made)) == encode(made)


def test_a_family_of_one_process_alone_is_there_and_every_sample_names_its_process():
    made, other = registry(), CollectorRegistry()
    Counter("swaps", "Swaps.", registry=other).inc()
    families = {family.name: family for family in ProcessesMetrics({0: made.collect(), 1: other.collect()}).collect()}
    assert {"requests", "lease_seconds", "wait_seconds", "swaps", "premotor_gateway_process_up"} == set(families)
    (swaps, _created) = families["swaps"].samples
    assert (swaps.labels, swaps.value) == ({"process": "1"}, 1.0)
    assert all(sample.labels["process"] == "0" for sample in families["requests"].samples)
