"""Jobs in an order, and how long what is left of them takes. What the jobs are, plan.py and video/plan.py say.

Owns the plan, its table and its duration with several workers. Knows no job's work and no store.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_MINIMUM_MEASURED = 3


class JobOfPlan(Protocol):
    """What the order of work knows of a job."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]: ...


_Job = TypeVar("_Job", bound=JobOfPlan)


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[_Job]):
    """Jobs in the order in which they are to be carried out; `left` are those not done."""

    kinds: tuple[str, ...]  # in the order of the table
    jobs: tuple[_Job, ...]
    left: tuple[_Job, ...]
    seconds: Mapping[str, float]  # key of a job -> what is left of it, of one worker

    def hours(self, num_workers: int) -> float:
        """Until the last of the jobs left ends, each worker taking the next one whose needs are done."""
        return _makespan(self.left, self.seconds, num_workers) / 3600

    def counts(self) -> dict[str, dict[str, int]]:
        """Jobs of each kind, "all" of them and those that are "left"."""
        return {
            kind: {
                "all": sum(job.kind == kind for job in self.jobs),
                "left": sum(job.kind == kind for job in self.left),
            }
            for kind in self.kinds
        }


def format_plan(plan: Plan[_Job], num_workers: int) -> str:
    """What is left, by kind, and how long it takes."""
    lines = [f"{'':<12} {'jobs':>6} {'done':>6} {'left':>6} {'hours of one worker':>20}"]
    for kind, counts in plan.counts().items():
        hours = sum(plan.seconds[job.key] for job in plan.left if job.kind == kind) / 3600
        num_jobs, num_left = counts["all"], counts["left"]
        lines.append(f"{kind:<12} {num_jobs:>6} {num_jobs - num_left:>6} {num_left:>6} {hours:>20.2f}")
    lines.append(
        f"{len(plan.left)} jobs left, about {plan.hours(num_workers):.2f} hours with {num_workers} worker processes"
    )
    return "\n".join(lines)


def measured_factor(seconds: Sequence[tuple[float, float]]) -> float:
    """How much longer than estimated the jobs of a kind took, each (estimated, measured); 1 where too few are done."""
    estimated, measured = (sum(each) for each in zip(*seconds, strict=True)) if seconds else (0.0, 0.0)
    return measured / estimated if len(seconds) >= _MINIMUM_MEASURED and estimated else 1.0


def _makespan(jobs: Sequence[JobOfPlan], seconds: Mapping[str, float], num_workers: int) -> float:
    """Seconds until the last of the jobs ends, each worker taking the next one whose needs are done."""
    waiting, now = list(jobs), 0.0
    open_keys = {job.key for job in jobs}
    running: list[tuple[float, str]] = []
    while waiting or running:
        ready = next((job for job in waiting if not open_keys.intersection(job.needs)), None)
        if ready is not None and len(running) < num_workers:
            waiting.remove(ready)
            heapq.heappush(running, (now + seconds[ready.key], ready.key))
        else:
            now, key = heapq.heappop(running)
            open_keys.remove(key)
    return now
