"""The metrics of several gateway processes as one exposition: every sample says which process counted it.

Owns the form in which a process hands over its metrics, and their union. Sums are the reader's to make: what may be
added (requests) and what may not (readiness) is known to the query, and a process that starts again counts from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import Exemplar, GaugeMetricFamily, Metric

PROCESS = "process"
# The number of the process that started the others.
FIRST = 0


class Collects(Protocol):
    def collect(self) -> Iterable[Metric]: ...


def dump_metrics(registry: Collects) -> list[dict[str, Any]]:
    """All families of a registry as JSON. To be called on the event loop that answers robots, as collecting is."""
    return [
        {
            "name": family.name,
            "documentation": family.documentation,
            "type": family.type,
            "unit": family.unit,
            "samples": [
                [
                    sample.name,
                    sample.labels,
                    sample.value,
                    None if (exemplar := sample.exemplar) is None else [*exemplar],
                ]
                for sample in family.samples
            ],
        }
        for family in registry.collect()
    ]


def load_metrics(families: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """What `dump_metrics` made."""
    loaded = []
    for each in families:
        family = Metric(each["name"], each["documentation"], each["type"], each["unit"])
        for name, labels, value, exemplar in each["samples"]:
            family.add_sample(name, labels, value, exemplar=None if exemplar is None else Exemplar(*exemplar))
        loaded.append(family)
    return loaded


class ProcessesMetrics:
    """The union, to be encoded like a registry; `processes` has None for one that did not say."""

    def __init__(self, processes: Mapping[int, Iterable[Metric] | None]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "premotor_gateway_process_up",
            "1 for each gateway process of this service whose metrics are among these; 0 for one that did not answer.",
            labels=(PROCESS,),
        )
        union: dict[str, Metric] = {}
        for number, families in self._processes.items():
            up.add_metric((str(number),), float(families is not None))
            for family in families or ():
                whole = union.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels={**sample.labels, PROCESS: str(number)}))
        yield up
        yield from union.values()
