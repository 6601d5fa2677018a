"""The last hour of each policy's traffic, in buckets of a second, in memory.

Owns counting, and reading percentiles and curves out of the counts. What is kept never grows: every bucket has its
place from the start. Written by the event loop that answers robots; may be read from a thread meanwhile, which then
sees a bucket half written, and nothing worse.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.errors import Reason, reason_name

HISTORY_S = 3600
# A batch of this many or more is counted as this many.
LARGEST_BATCH = 64
# Bins of a latency: 9 % wide each, from a tenth of a millisecond to over a minute.
_SHORTEST_S = 1e-4
_BINS_PER_OCTAVE = 8
_NUM_BINS = 160
_NEVER = -1
_SHARES = np.array([0.5, 0.95])
_NO_FAULT = Reason.REASON_SUPERSEDED


class Stages(NamedTuple):
    """Where a chunk's time went; `total` is more than the others' sum by what lies between them."""

    decode_s: float
    queue_s: float
    inference_s: float
    total_s: float


STAGES = tuple(field.removesuffix("_s") for field in Stages._fields)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of one stage, in seconds; within 5 % of what was measured."""

    p50_s: float
    p95_s: float


@dataclass(frozen=True, kw_only=True)
class Window:
    """The last `window_s` of a policy."""

    window_s: int
    num_chunks: int
    # By stage; without a stage that nothing went through.
    latency: Mapping[str, Latency]
    # Requests by the size of the batch they were in.
    batches: Mapping[int, int]
    # Requests without a chunk by their reason, empty for those whose caller left; the most frequent first.
    errors: Mapping[str, int]
    num_underruns: int

    @property
    def num_errors(self) -> int:
        """Without those of a robot that asked again before it was answered: that is no fault of anybody's."""
        return sum(count for reason, count in self.errors.items() if reason != reason_name(_NO_FAULT))

    @property
    def chunks_per_s(self) -> float:
        return self.num_chunks / self.window_s


@dataclass(frozen=True, kw_only=True)
class Point:
    """A stretch of a curve, which began `age_s` ago."""

    age_s: float
    num_chunks: int
    # As of Window.
    num_errors: int
    # Of stage "total"; None while no chunk was sent.
    latency: Latency | None


class PolicyTraffic:
    """What became of one policy's requests."""

    def __init__(self, *, now_s: Callable[[], float]) -> None:
        """`now_s` is monotonic."""
        self._now_s = now_s
        # Set by whoever has the queue.
        self.num_queued: Callable[[], float] = lambda: 0
        # Which second each bucket is of.
        self._seconds = np.full(HISTORY_S, _NEVER, np.int64)
        # No gateway answers 65,536 requests of a policy in a second.
        self._latencies = np.zeros((HISTORY_S, len(STAGES), _NUM_BINS), np.uint16)
        self._batches = np.zeros((HISTORY_S, LARGEST_BATCH + 1), np.uint16)
        self._errors = np.zeros((HISTORY_S, len(Reason.values())), np.uint32)
        self._underruns = np.zeros(HISTORY_S, np.int64)

    def note_chunk(self, stages_s: Stages, batch_size: int) -> None:
        """A chunk that was sent."""
        bucket = self._bucket()
        latencies = self._latencies[bucket]
        for stage, seconds in enumerate(stages_s):
            latencies[stage, _bin(seconds)] += 1
        self._batches[bucket, min(batch_size, LARGEST_BATCH)] += 1

    def note_error(self, reason: Reason) -> None:
        self._errors[self._bucket(), reason] += 1

    def note_underruns(self, num_underruns: int) -> None:
        self._underruns[self._bucket()] += num_underruns

    def window(self, window_s: int) -> Window:
        """The whole seconds of the last `window_s`, at most an hour, and the one that is not over."""
        _, buckets = self._last(window_s)
        latencies = self._latencies[buckets].sum(0, dtype=np.int64)
        batches = self._batches[buckets].sum(0, dtype=np.int64)
        errors = self._errors[buckets].sum(0, dtype=np.int64)
        found = {reason_name(code): int(errors[code]) for code in errors.nonzero()[0].tolist()}
        return Window(
            window_s=window_s,
            num_chunks=int(batches.sum()),
            latency={stage: _latency(latencies[i]) for i, stage in enumerate(STAGES) if latencies[i].any()},
            batches={int(size): int(batches[size]) for size in batches.nonzero()[0]},
            errors=dict(sorted(found.items(), key=lambda item: -item[1])),
            num_underruns=int(self._underruns[buckets].sum()),
        )

    def curve(self, *, window_s: int, step_s: int) -> list[Point]:
        """The last `window_s` in stretches of `step_s`, the oldest first."""
        now, buckets = self._last(window_s)
        num_stretches = window_s // step_s
        # Stretches begin at whole multiples of the step, so that a curve that is drawn again moves and does not change.
        back = now // step_s - self._seconds[buckets] // step_s
        order = back.argsort(kind="stable")
        order = order[: np.searchsorted(back[order], num_stretches)]
        buckets, back = buckets[order], back[order]
        totals = np.zeros((num_stretches, _NUM_BINS), np.int64)
        filled, firsts = np.unique(back, return_index=True)
        if len(filled):
            latencies = self._latencies[buckets, STAGES.index("total")]
            totals[filled] = np.add.reduceat(latencies, firsts, axis=0, dtype=np.int64)
        failed = self._errors[buckets].sum(1) - self._errors[buckets, _NO_FAULT]
        errors = np.bincount(back, failed, num_stretches).astype(int).tolist()
        num_chunks = totals.sum(1).tolist()
        return [
            Point(
                age_s=float(now % step_s + step_s * each),
                num_chunks=num_chunks[each],
                num_errors=errors[each],
                latency=_latency(totals[each]) if num_chunks[each] else None,
            )
            for each in reversed(range(num_stretches))
        ]

    def _bucket(self) -> int:
        second = int(self._now_s())
        bucket = second % HISTORY_S
        if self._seconds[bucket] != second:
            for counts in (self._latencies, self._batches, self._errors, self._underruns):
                counts[bucket] = 0
            self._seconds[bucket] = second
        return bucket

    def _last(self, window_s: int) -> tuple[int, np.ndarray]:
        """This second, and the buckets of the last `window_s`."""
        now = int(self._now_s())
        recent = (self._seconds != _NEVER) & (self._seconds > now - min(window_s, HISTORY_S)) & (self._seconds <= now)
        return now, recent.nonzero()[0]


class RecentTraffic:
    """Every policy's traffic in this process."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._policies: dict[str, PolicyTraffic] = {}

    def of(self, policy: str) -> PolicyTraffic:
        """Made when it is first asked for: `policy` is a name that an operator gave, or the one for unknown names."""
        traffic = self._policies.get(policy)
        if traffic is None:
            traffic = self._policies[policy] = PolicyTraffic(now_s=self._now_s)
        return traffic

    def forget(self, policy: str) -> None:
        self._policies.pop(policy, None)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._policies))


def _bin(seconds: float) -> int:
    if seconds <= _SHORTEST_S:
        return 0
    return min(int(_BINS_PER_OCTAVE * math.log2(seconds / _SHORTEST_S)), _NUM_BINS - 1)


def _latency(counts: np.ndarray) -> Latency:
    """`counts` is [_NUM_BINS], not all 0."""
    reached = counts.cumsum()
    wanted = reached[-1] * _SHARES
    index = reached.searchsorted(wanted)
    inside = (wanted - (reached[index] - counts[index])) / counts[index]
    p50_s, p95_s = (_SHORTEST_S * 2 ** ((index + inside) / _BINS_PER_OCTAVE)).tolist()
    return Latency(p50_s=p50_s, p95_s=p95_s)
