"""How a shadow compares with what is served, read out of the metrics that the gateway counts in.

Owns the reading alone. Does not own the comparison (gateway/shadow.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

_NAMES = ("premotor_shadow_divergence_ratio", "premotor_shadow_requests_total")
_HISTOGRAMS = ("premotor_shadow_divergence", "premotor_shadow_latency_seconds")


@dataclass(frozen=True, kw_only=True)
class GroupDivergence:
    """Mean distance of one action group, in its unit."""

    embodiment: str
    group: str
    unit: str
    mean: float
    num_chunks: int


@dataclass(frozen=True, kw_only=True)
class ShadowReading:
    # Recent divergence of the worst group over the spread of what is served; None before the first comparison.
    ratio: float | None
    mean_latency_s: float | None
    # Copies by what became of them.
    requests: Mapping[str, int]
    groups: tuple[GroupDivergence, ...]


def read_shadow(registry: CollectorRegistry, policy: str, revision: str) -> ShadowReading:
    """What this process has counted since it started."""
    samples = list(_samples(registry, policy, revision))
    sums = {(name, *_group(labels)): value for name, labels, value in samples if name.endswith("_sum")}
    counts = {
        (name.removesuffix("_count") + "_sum", *_group(labels)): int(value)
        for name, labels, value in samples
        if name.endswith("_count")
    }
    ratios = [value for name, _, value in samples if name == "premotor_shadow_divergence_ratio"]
    latency = ("premotor_shadow_latency_seconds_sum", "", "", "")
    return ShadowReading(
        ratio=ratios[0] if ratios else None,
        mean_latency_s=sums[latency] / counts[latency] if counts.get(latency) else None,
        requests={
            labels["outcome"]: int(value) for name, labels, value in samples if name == "premotor_shadow_requests_total"
        },
        groups=tuple(
            GroupDivergence(embodiment=embodiment, group=group, unit=unit, mean=total / count, num_chunks=count)
            for (name, embodiment, group, unit), total in sums.items()
            if name == "premotor_shadow_divergence_sum" and (count := counts[name, embodiment, group, unit])
        ),
    )


def _samples(registry: CollectorRegistry, policy: str, revision: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    wanted = [*_NAMES, *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("sum", "count"))]
    for family in registry.restricted_registry(wanted).collect():
        for sample in family.samples:
            if (sample.labels.get("policy"), sample.labels.get("revision")) == (policy, revision):
                yield sample.name, sample.labels, sample.value


def _group(labels: Mapping[str, str]) -> tuple[str, str, str]:
    return labels.get("embodiment", ""), labels.get("group", ""), labels.get("unit", "")
