"""Latency and throughput of a served policy under a fixed number of robots.

Each robot is a thread with a connection of its own that asks again as soon as it has its chunk: a closed loop, which
says how fast the service can go, not how it behaves when robots come at their own pace. Where no body is named the
robots are spread over all that the policy drives. Frames are encoded before the clock starts and differ from call to
call. Owns no claim about success or the quality of actions.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from premotor.client.chunks import Chunk, ChunkArguments, ServerTiming, build_request
from premotor.client.description import Embodiment, PolicyDescription
from premotor.client.errors import FixRequestError, PolicyError, RetryableError
from premotor.client.identity import TlsOptions, token_metadata
from premotor.client.images import ImageEncoding
from premotor.client.sync_client import PolicyClient
from premotor.client.synthetic import synthetic_arguments

NUM_OBSERVATIONS = 4
# A service that refuses at once must not be asked as fast as it can refuse.
RETRY_DELAY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """`embodiment` "" is all bodies of the policy, in its order: robot number n has body n modulo their number."""

    address: str
    policy: str
    embodiment: str = ""
    concurrency: int = 8
    duration_s: float = 10.0
    warmup_s: float = 2.0
    timeout_s: float = 10.0
    num_inference_steps: int | None = None
    image_encoding: ImageEncoding = "jpeg"
    token: str = field(default="", repr=False)
    tls: TlsOptions | None = None
    allow_token_without_tls: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, expected at least 1")
        for name, value, allowed in (
            ("duration_s", self.duration_s, self.duration_s > 0),
            ("warmup_s", self.warmup_s, self.warmup_s >= 0),
            ("timeout_s", self.timeout_s, self.timeout_s > 0),
        ):
            if not allowed or not np.isfinite(value):
                raise ValueError(f"{name} is {value}, expected a positive number of seconds")
        token_metadata(self.token, self.address, tls=self.tls, allow_token_without_tls=self.allow_token_without_tls)


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(mean=float(np.mean(values)), p50=p50, p90=p90, p99=p99, max=float(np.max(values)))


@dataclass(frozen=True, kw_only=True)
class BodyShare:
    """What the robots of one body asked and got; `request_bytes` is one request's."""

    num_robots: int
    request_bytes: int
    num_chunks: int


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What was measured after the warm-up, of all robots together; `embodiments` has the part of each body.

    `spans_ms` covers answered requests only and is empty when there is none: the round trip, the server's own spans,
    and the round trip less the server's total.
    """

    address: str
    policy: str
    revisions: tuple[str, ...]
    embodiments: dict[str, BodyShare]
    concurrency: int
    duration_s: float
    image_encoding: str
    num_chunks: int
    num_errors: int
    errors: dict[str, int]
    chunks_per_s: float
    spans_ms: dict[str, Percentiles]


@dataclass(frozen=True, kw_only=True)
class _Window:
    """The measured span, on the monotonic clock."""

    start_s: float
    end_s: float

    def __contains__(self, instant_s: float) -> bool:
        return self.start_s <= instant_s < self.end_s


@dataclass(kw_only=True)
class _Measured:
    """What one robot saw inside the window; written by its thread alone."""

    chunks: list[Chunk] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    fatal: FixRequestError | None = None


def run_bench(settings: BenchSettings) -> BenchReport:
    """Loads the service and reports. Raises PolicyError when the policy is not described or refuses its own shapes."""
    with _connected(settings) as client:
        description = client.get_policy(settings.policy)
    bodies = _bodies(settings, description)
    questions = [_questions(settings, description, body, robot) for robot, body in enumerate(bodies)]
    measured = [_Measured() for _ in range(settings.concurrency)]
    stop = threading.Event()
    start_s = time.monotonic() + settings.warmup_s
    window = _Window(start_s=start_s, end_s=start_s + settings.duration_s)
    robots = [
        threading.Thread(target=_ask_until_the_end, args=(settings, asked, window, stop, seen), name=f"robot-{number}")
        for number, (asked, seen) in enumerate(zip(questions, measured, strict=True))
    ]
    for robot in robots:
        robot.start()
    try:
        for robot in robots:
            robot.join()
    finally:
        stop.set()
    for seen in measured:
        if seen.fatal is not None:
            raise seen.fatal
    return _report(settings, _shares(bodies, questions, measured), measured)


def _bodies(settings: BenchSettings, description: PolicyDescription) -> list[Embodiment]:
    """Each robot's."""
    named = settings.embodiment
    driven = (description.embodiment(named),) if named else description.embodiments
    return [driven[robot % len(driven)] for robot in range(settings.concurrency)]


def _connected(settings: BenchSettings) -> PolicyClient:
    return PolicyClient(
        settings.address,
        timeout_s=settings.timeout_s,
        token=settings.token,
        tls=settings.tls,
        allow_token_without_tls=settings.allow_token_without_tls,
    )


def _questions(
    settings: BenchSettings, description: PolicyDescription, embodiment: Embodiment, robot: int
) -> list[ChunkArguments]:
    rng = np.random.default_rng(robot)
    questions = [
        synthetic_arguments(
            description,
            embodiment,
            robot_id=f"bench-{robot}",
            episode_id="bench",
            image_encoding=settings.image_encoding,
            rng=rng,
        )
        for _ in range(NUM_OBSERVATIONS)
    ]
    for question in questions:
        question["num_inference_steps"] = settings.num_inference_steps
    return questions


def _ask_until_the_end(
    settings: BenchSettings,
    questions: Sequence[ChunkArguments],
    window: _Window,
    stop: threading.Event,
    measured: _Measured,
) -> None:
    with _connected(settings) as client:
        asked = 0
        while not stop.is_set() and time.monotonic() < window.end_s:
            question = questions[asked % len(questions)]
            asked += 1
            try:
                chunk = client.predict_chunk(**question)
            except FixRequestError as error:
                measured.fatal = error
                stop.set()
            except PolicyError as error:
                if time.monotonic() in window:
                    measured.errors[type(error).__name__] += 1
                named_delay_s = error.retry_delay_s if isinstance(error, RetryableError) else None
                stop.wait(min(named_delay_s or RETRY_DELAY_S, settings.duration_s))
            else:
                if time.monotonic() in window:
                    measured.chunks.append(chunk)


def _shares(
    bodies: Sequence[Embodiment], questions: Sequence[Sequence[ChunkArguments]], measured: Sequence[_Measured]
) -> dict[str, BodyShare]:
    names = [body.name for body in bodies]
    return {
        name: BodyShare(
            num_robots=names.count(name),
            request_bytes=build_request(**questions[names.index(name)][0]).ByteSize(),
            num_chunks=sum(len(seen.chunks) for body, seen in zip(names, measured, strict=True) if body == name),
        )
        for name in dict.fromkeys(names)
    }


def _report(settings: BenchSettings, embodiments: dict[str, BodyShare], measured: Sequence[_Measured]) -> BenchReport:
    chunks = [chunk for seen in measured for chunk in seen.chunks]
    errors = sum((seen.errors for seen in measured), Counter[str]())
    return BenchReport(
        address=settings.address,
        policy=settings.policy,
        revisions=tuple(sorted({chunk.revision for chunk in chunks})),
        embodiments=embodiments,
        concurrency=settings.concurrency,
        duration_s=settings.duration_s,
        image_encoding=settings.image_encoding,
        num_chunks=len(chunks),
        num_errors=sum(errors.values()),
        errors=dict(errors),
        chunks_per_s=len(chunks) / settings.duration_s,
        spans_ms=_spans_ms(chunks) if chunks else {},
    )


def _spans_ms(chunks: Sequence[Chunk]) -> dict[str, Percentiles]:
    spans_s = {"round_trip": [chunk.round_trip_s for chunk in chunks]}
    for span in fields(ServerTiming):
        spans_s[f"server_{span.name.removesuffix('_s')}"] = [getattr(chunk.timing, span.name) for chunk in chunks]
    spans_s["outside_server"] = [chunk.round_trip_s - chunk.timing.total_s for chunk in chunks]
    return {name: Percentiles.of([1000.0 * span_s for span_s in spans]) for name, spans in spans_s.items()}
