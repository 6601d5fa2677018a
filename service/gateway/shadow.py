"""Shadow traffic: requests that another revision answers as well, to be compared and thrown away.

Owns the copying, which never makes a robot wait nor one shadow for another, how far the two answers are apart, and the
events that say that they are too far or do not come. Does not own which revision is a shadow (the registry) or what is
done about it (an alert, an operator). For one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from premotor.v1 import policy_pb2
from service.backend import Backend, BackendChunk, BackendError, BackendRequest
from service.registry import Shadow
from service.revision import Revision

_logger = logging.getLogger(__name__)
# Waiting copies of one shadow beyond these are dropped: one that is slower than its traffic sees a part of it.
_MAX_WAITING = 16
_TIMEOUT_S = 10.0
# How long what is known of a shadow outlives its being one, at most.
_TEND_INTERVAL_S = 0.5
# Of the running mean and spread of what is served, and of the divergence that is judged.
_MEMORY = 0.98
_MIN_JUDGED = 20
# In spreads of the served actions: two trainings of one recipe are at 0.1 to 0.4, unrelated answers at 1 and more.
DIVERGENCE_LIMIT = 1.0
# Share of the copies without an answer that can be compared; as the alert rule PremotorShadowFails has it.
FAILURE_LIMIT = 0.05
# What an operator finds in the log, once until it is well again.
DIVERGES, FAILS = "shadow diverges", "shadow fails"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Copy:
    policy: str
    revision: Revision
    embodiment: str
    request: BackendRequest
    served: BackendChunk


class ShadowMetrics:
    """What is published of shadows; all values are of revisions that an operator named."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of_revision = ("policy", "revision")
        self.requests = Counter(
            "premotor_shadow_requests",
            "Requests for a shadow, by what became of the copy; one that has another schema is sent none.",
            (*of_revision, "outcome"),
            registry=registry,
        )
        self.divergence = Histogram(
            "premotor_shadow_divergence",
            "Mean distance of a shadow's actions from those served, by action group, in the group's unit.",
            (*of_revision, "embodiment", "group", "unit"),
            buckets=(1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            registry=registry,
        )
        self.latency = Histogram(
            "premotor_shadow_latency_seconds",
            "From a copy's departure to its answer.",
            of_revision,
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
            registry=registry,
        )
        self.relative = Gauge(
            "premotor_shadow_divergence_ratio",
            "Recent divergence of the worst action group over the spread of what is served; above 1 is unrelated.",
            of_revision,
            registry=registry,
        )

    def forget(self, policy: str, revision: str) -> None:
        for metric in (self.requests, self.divergence, self.latency, self.relative):
            metric.remove_by_labels({"policy": policy, "revision": revision})


class ShadowTraffic:
    """Takes copies from the answering of requests; `start` and `stop` once."""

    def __init__(
        self,
        *,
        backend: Backend,
        metrics_registry: CollectorRegistry,
        shadowed: Callable[[], Collection[tuple[str, str]]],
    ) -> None:
        """`shadowed` says policy and revision of all that are shadows now."""
        self._backend = backend
        self._metrics = ShadowMetrics(metrics_registry)
        self._shadowed = shadowed
        self._draw = random.Random()
        # By policy and revision.
        self._shadows: dict[tuple[str, str], _Shadowing] = {}
        self._any_shadow = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._tending = asyncio.create_task(self._tend(), name="shadows")

    async def stop(self) -> None:
        """What is offered from now on is not taken."""
        if self._tending is not None:
            tasks = [self._tending, *(shadow.task for shadow in self._shadows.values())]
            self._tending = None
            await _cancelled(tasks)

    def offer(
        self,
        policy: str,
        shadow: Shadow,
        revisions: tuple[Revision, Revision],
        embodiment: policy_pb2.Embodiment,
        request: BackendRequest,
        served: BackendChunk,
    ) -> None:
        """Copies a request that was just answered, if its share says so. Returns at once.

        `revisions` are the one that answered and the shadow; one that reads requests otherwise gets none, and fails.
        """
        answered, revision = revisions
        if self._tending is None or answered.revision == revision.revision or self._draw.random() >= shadow.share:
            return
        copy = _Copy(policy=policy, revision=revision, embodiment=embodiment.name, request=request, served=served)
        shadowing = self._shadowing(copy)
        shadowing.comparison.know(embodiment)
        if answered.description.schema_digest != revision.description.schema_digest:
            self._fail(copy, "other_schema", f"its schema is not that of {answered.revision}, which serves")
            return
        try:
            shadowing.waiting.put_nowait(copy)
        except asyncio.QueueFull:
            self._count(copy, "dropped")

    async def settled(self) -> None:
        """Waits until every copy taken so far was answered, or failed."""
        for shadowing in [*self._shadows.values()]:
            await shadowing.waiting.join()

    def _shadowing(self, copy: _Copy) -> _Shadowing:
        key = copy.policy, copy.revision.revision
        if key not in self._shadows:
            waiting: asyncio.Queue[_Copy] = asyncio.Queue(_MAX_WAITING)
            task = asyncio.create_task(self._run(waiting), name=f"shadow {key}")
            self._shadows[key] = _Shadowing(waiting=waiting, task=task, comparison=_Comparison())
            self._any_shadow.set()
        return self._shadows[key]

    async def _tend(self) -> None:
        """Forgets those that are shadows no more; does not wake while there is none."""
        while True:
            await self._any_shadow.wait()
            await asyncio.sleep(_TEND_INTERVAL_S)
            for key in self._shadows.keys() - {*self._shadowed()}:
                await _cancelled([self._shadows[key].task])
                del self._shadows[key]
                self._metrics.forget(*key)
            if not self._shadows:
                self._any_shadow.clear()

    async def _run(self, waiting: asyncio.Queue[_Copy]) -> None:
        while True:
            copy = await waiting.get()
            try:
                await self._compare(copy)
            except Exception as error:  # the edge: one copy's trouble ends no shadow
                _logger.exception("shadow failed", extra={"fields": {"revision": copy.revision.revision}})
                self._fail(copy, "failed", type(error).__name__)
            finally:
                waiting.task_done()

    async def _compare(self, copy: _Copy) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            request = replace(copy.request, is_shadow=True)
            chunk = await self._backend.predict(copy.revision.revision, request, timeout_s=_TIMEOUT_S)
        except BackendError as error:
            fields = {"revision": copy.revision.revision, "error": str(error)}
            _logger.info("shadow gave no chunk", extra={"fields": fields})
            self._fail(copy, "failed", str(error))
            return
        key = copy.policy, copy.revision.revision
        comparison = self._shadowing(copy).comparison
        self._metrics.latency.labels(*key).observe(loop.time() - started_s)
        if chunk.actions.shape != copy.served.actions.shape or not np.isfinite(chunk.actions).all():
            self._fail(copy, "invalid", "the answer has another shape, or numbers that are not finite")
            # What cannot be compared is as far off as can be.
            self._judge(copy, comparison, float("inf"))
            return
        for group, unit, distance in comparison.add(copy.embodiment, copy.served.actions, chunk.actions):
            self._metrics.divergence.labels(*key, copy.embodiment, group, unit).observe(distance)
        self._end(copy, "answered", failed=False)
        self._judge(copy, comparison, comparison.ratio)

    def _judge(self, copy: _Copy, comparison: _Comparison, ratio: float) -> None:
        self._metrics.relative.labels(copy.policy, copy.revision.revision).set(ratio)
        if comparison.num_ended >= _MIN_JUDGED:
            comparison.diverges.judge(ratio, policy=copy.policy, revision=copy.revision.revision)

    def _fail(self, copy: _Copy, outcome: str, error: str) -> None:
        self._shadowing(copy).comparison.last_failure = {"outcome": outcome, "error": error}
        self._end(copy, outcome, failed=True)

    def _end(self, copy: _Copy, outcome: str, *, failed: bool) -> None:
        self._count(copy, outcome)
        key = copy.policy, copy.revision.revision
        comparison = self._shadowing(copy).comparison
        comparison.note_end(failed=failed)
        if comparison.num_ended >= _MIN_JUDGED:
            comparison.fails.judge(comparison.failing, policy=key[0], revision=key[1], **comparison.last_failure)

    def _count(self, copy: _Copy, outcome: str) -> None:
        self._metrics.requests.labels(copy.policy, copy.revision.revision, outcome).inc()


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Alarm:
    """Logs an event when a value passes its limit, and again only after it has been well below."""

    def __init__(self, event: str, limit: float) -> None:
        self._event, self._limit = event, limit
        self._raised = False

    def judge(self, value: float, **fields: str) -> None:
        if value > self._limit and not self._raised:
            self._raised = True
            # JSON has no word for infinity.
            ratio = round(value, 3) if math.isfinite(value) else str(value)
            _logger.warning(self._event, extra={"fields": {"ratio": ratio, **fields}})
        elif value < self._limit / 2:
            self._raised = False


class _Comparison:
    """How far one revision is from what is served, lately, by embodiment and action group; and how often it fails."""

    def __init__(self) -> None:
        self.diverges, self.fails = _Alarm(DIVERGES, DIVERGENCE_LIMIT), _Alarm(FAILS, FAILURE_LIMIT)
        # Copies that came to an end, and the share of those, lately, without an answer that can be compared.
        self.num_ended, self.failing = 0, 0.0
        self.last_failure: dict[str, str] = {}
        self._groups: dict[str, Sequence[tuple[str, str, slice]]] = {}
        # Embodiment to the running mean and mean square of each dimension of what is served.
        self._served: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        # Embodiment and group to its running distance over spread.
        self._ratios: dict[tuple[str, str], float] = {}

    @property
    def ratio(self) -> float:
        return max(self._ratios.values(), default=0.0)

    def know(self, embodiment: policy_pb2.Embodiment) -> None:
        if embodiment.name in self._groups:
            return
        first, groups = 0, []
        for group in embodiment.action:
            groups.append((group.name, group.unit, slice(first, first + group.dim)))
            first += group.dim
        self._groups[embodiment.name] = groups

    def note_end(self, *, failed: bool) -> None:
        self.num_ended += 1
        self.failing += max(1 / self.num_ended, 1 - _MEMORY) * (failed - self.failing)

    def add(self, embodiment: str, served: np.ndarray, other: np.ndarray) -> Sequence[tuple[str, str, float]]:
        """(group, unit, mean distance) of one pair of chunks, each [action_horizon, action_dim]."""
        mean, square = self._served.get(embodiment, (served.mean(0), (served**2).mean(0)))
        mean = _MEMORY * mean + (1 - _MEMORY) * served.mean(0)
        square = _MEMORY * square + (1 - _MEMORY) * (served**2).mean(0)
        self._served[embodiment] = mean, square
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
        found = []
        for group, unit, dims in self._groups[embodiment]:
            distance = float(np.abs(served[:, dims] - other[:, dims]).mean())
            found.append((group, unit, distance))
            scale = float(spread[dims].mean())
            if scale > 0:
                key = embodiment, group
                ratio = distance / scale
                self._ratios[key] = _MEMORY * self._ratios.get(key, ratio) + (1 - _MEMORY) * ratio
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shadowing:
    """One shadow of one policy: the copies that wait for it, what asks it, and how it does."""

    waiting: asyncio.Queue[_Copy]
    task: asyncio.Task[None]
    comparison: _Comparison
