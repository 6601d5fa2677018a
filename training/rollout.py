"""Closed loop on simulated robots: one code for a policy in process and one served over gRPC.

Receding horizon in lock step: observe, ask for a chunk, play its first actions, observe again. Owns rollouts, their
figures and the Wilson interval; what is played where chunks overlap is the client's, videos are video.py's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from policy.policy import Policy
from policy.real_time import DEFAULT_MAX_GUIDANCE_WEIGHT
from policy.request import ChunkRequest
from policy.request import RealTimeChunking as ModelChunking
from premotor.client import (
    ActionBuffer,
    Group,
    HistoryBuffer,
    PolicyClient,
    RealTimeChunking,
    RealTimeChunkingRule,
    Replace,
    TemporalEnsemble,
)
from training.seams import SeamMeter
from training.simulation.task import Frame, Simulation

Floats = npt.NDArray[np.float32]
PlaybackRule = Replace | TemporalEnsemble | RealTimeChunkingRule
RuleName = Literal["replace", "ensemble", "guidance", "prefix"]
RULES: Mapping[RuleName, PlaybackRule] = {
    "replace": Replace(),
    "ensemble": TemporalEnsemble(),
    "guidance": RealTimeChunkingRule(method="guidance"),
    "prefix": RealTimeChunkingRule(method="prefix"),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    actions: Floats  # [action_horizon, action_dim]
    latency_s: float  # from the question to its answer, image encoding excluded


class ChunkSource(Protocol):
    """Whoever answers a robot: keeps nothing between questions but the robot's own history window."""

    execution_horizon: int

    def start_episode(self, simulation: Simulation, episode_id: str) -> None: ...

    def predict(
        self, simulation: Simulation, frame: Frame, seed: int, chunking: RealTimeChunking | None = None
    ) -> Answer:
        """`chunking` is what is being played meanwhile, where the chunk must continue it."""
        ...

    def played(self, state: Floats, action: Floats) -> None:
        """One control step was played: `state` measured before it, `action` as executed."""
        ...


HistoryMode = Literal["none", "true", "shuffled", "frozen"]


@dataclass(frozen=True, kw_only=True)
class HistoryCondition:
    """What a policy is told of the past.

    "shuffled" gives the true steps in another order at every question; "frozen" repeats the episode's first full
    window; `delay_steps` gives a window that ends so many control steps before the present.
    """

    mode: HistoryMode = "none"
    delay_steps: int = 0

    def __post_init__(self) -> None:
        if self.delay_steps < 0 or (self.delay_steps and self.mode != "true"):
            raise ValueError(
                f"history delay is {self.delay_steps} steps with mode {self.mode!r}, expected 0, or more with 'true'"
            )


class PastSteps:
    """The steps of one episode, and the window of them that a condition lets a policy see."""

    def __init__(self, condition: HistoryCondition, num_steps: int) -> None:
        self._condition, self._num_steps = condition, num_steps
        self._steps: list[tuple[Floats, Floats]] = []

    def clear(self) -> None:
        self._steps.clear()

    def append(self, state: Floats, action: Floats) -> None:
        self._steps.append((state, action))

    def window(self, seed: int) -> list[tuple[Floats, Floats]]:
        """Oldest first, at most `num_steps`; `seed` orders a shuffled one."""
        if self._condition.mode == "none":
            return []
        if self._condition.mode == "frozen":
            return self._steps[: self._num_steps]
        seen = self._steps[: max(0, len(self._steps) - self._condition.delay_steps)]
        window = seen[-self._num_steps :]
        if self._condition.mode == "shuffled":
            return [window[i] for i in np.random.default_rng(seed).permutation(len(window))]
        return window


class LocalSource:
    """A policy in this process."""

    def __init__(self, policy: Policy, *, history: HistoryCondition, num_inference_steps: int | None = None) -> None:
        """`num_inference_steps` None leaves the Euler steps to the checkpoint."""
        self._policy = policy
        self._num_inference_steps = num_inference_steps
        self.execution_horizon = policy.config.execution_horizon
        self._past = PastSteps(history, policy.config.history_steps)

    def start_episode(self, simulation: Simulation, episode_id: str) -> None:
        self._past.clear()

    def predict(
        self, simulation: Simulation, frame: Frame, seed: int, chunking: RealTimeChunking | None = None
    ) -> Answer:
        started = time.perf_counter()
        chunk = self._policy.predict_chunk([self._request(simulation, frame, seed, chunking)])[0]
        return Answer(actions=chunk.cpu().numpy(), latency_s=time.perf_counter() - started)

    def played(self, state: Floats, action: Floats) -> None:
        self._past.append(state, action)

    def _request(
        self, simulation: Simulation, frame: Frame, seed: int, chunking: RealTimeChunking | None
    ) -> ChunkRequest:
        past = self._past.window(seed)
        return ChunkRequest(
            embodiment=simulation.spec.name,
            images={name: torch.from_numpy(np.ascontiguousarray(image)) for name, image in frame.images.items()},
            state=torch.from_numpy(frame.state),
            instruction=simulation.instruction,
            history_states=torch.from_numpy(np.stack([state for state, _ in past])) if past else None,
            history_actions=torch.from_numpy(np.stack([action for _, action in past])) if past else None,
            seed=seed,
            num_inference_steps=self._num_inference_steps,
            real_time_chunking=self._continued(chunking) if chunking is not None else None,
        )

    def _continued(self, chunking: RealTimeChunking) -> ModelChunking:
        """What the gateway makes of the same, its choice of a method included."""
        method, delay = chunking.method, chunking.inference_delay
        if method == "auto":
            trained = self._policy.config.max_inference_delay
            method = "prefix" if trained and delay <= trained else "guidance"
        return ModelChunking(
            previous_actions=torch.from_numpy(chunking.previous_actions),
            inference_delay=delay,
            execution_horizon=chunking.execution_horizon or self.execution_horizon,
            method=method,
            max_guidance_weight=chunking.max_guidance_weight or DEFAULT_MAX_GUIDANCE_WEIGHT,
        )


class ServedSource:
    """A policy behind `PredictChunk`; the connection is shared by all episodes of this source."""

    def __init__(
        self,
        client: PolicyClient,
        policy: str,
        *,
        robot_id: str,
        history: bool,
        revision: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        """`revision` is the only one that may answer; empty leaves it to the policy's route."""
        self._client, self._policy, self._robot_id, self._timeout_s = client, policy, robot_id, timeout_s
        self._revision = revision
        self._keeps_history = history
        self._history: HistoryBuffer | None = None
        self._episode_id = ""
        self.execution_horizon = client.get_policy(policy).execution_horizon

    def start_episode(self, simulation: Simulation, episode_id: str) -> None:
        self._episode_id = episode_id
        self._history = self._client.history_buffer(self._policy, simulation.spec.name) if self._keeps_history else None

    def predict(
        self, simulation: Simulation, frame: Frame, seed: int, chunking: RealTimeChunking | None = None
    ) -> Answer:
        chunk = self._client.predict_chunk(
            policy=self._policy,
            robot_id=self._robot_id,
            episode_id=self._episode_id,
            embodiment=simulation.spec.name,
            images=frame.images,
            state=frame.state,
            instruction=simulation.instruction,
            history=self._history,
            seed=seed,
            real_time_chunking=chunking,
            revision=self._revision,
            timeout_s=self._timeout_s,
        )
        return Answer(actions=chunk.actions, latency_s=chunk.round_trip_s)

    def played(self, state: Floats, action: Floats) -> None:
        if self._history is not None:
            self._history.append(state, action)


@dataclass(frozen=True, kw_only=True)
class Episode:
    seed: int
    succeeded: bool
    num_steps: int
    latencies_s: tuple[float, ...]


def run_episode(
    simulation: Simulation,
    source: ChunkSource,
    seed: int,
    on_frame: Callable[[Frame], None] | None = None,
    inference_delay: int = 0,
    rule: PlaybackRule = RULES["replace"],
    seams: SeamMeter | None = None,
) -> Episode:
    """One scene until it is solved or the task's step limit. `on_frame` sees a frame before every step.

    A chunk takes over `inference_delay` control steps after its observation, from the action meant for that step on, as
    `rule` says; until then the one before plays on. The first is waited for. Raises ValueError when a chunk is too
    short for that, or must continue one that is still to come; NoisyFrameError rather than ask a policy about noise.
    """
    horizon = source.execution_horizon
    if isinstance(rule, RealTimeChunkingRule) and inference_delay > horizon:
        raise ValueError(
            f"inference_delay is {inference_delay}, expected at most {horizon} of a chunk that continues the one before"
        )
    simulation.reset(seed)
    source.start_episode(simulation, f"{simulation.task}-{seed}")
    if seams is not None:
        seams.start()
    plan = ActionBuffer(_action_groups(simulation), rule)
    latencies: list[float] = []
    # Chunks that were asked for and have not taken over yet: for which step each is, and from which on it counts.
    coming: list[tuple[int, int, Floats]] = []
    step, playing = 0, 0
    while step < simulation.max_steps and not simulation.succeeded():
        while coming and coming[0][1] == step:
            for_step, _, actions = coming.pop(0)
            plan.insert(actions, for_step=for_step, now_step=step)
        if step % horizon == 0:
            chunking = _continued(plan, rule, step, inference_delay, horizon)
            frame = simulation.observe()
            _check_images(simulation, frame, seed, step)
            answer = source.predict(simulation, frame, seed * 1_000_003 + step, chunking)
            latencies.append(answer.latency_s)
            if len(answer.actions) < horizon + inference_delay:
                raise ValueError(
                    f"a chunk has {len(answer.actions)} actions, playing it with this delay takes "
                    f"{horizon + inference_delay}"
                )
            if step == 0 or inference_delay == 0:
                plan.insert(answer.actions, for_step=step, now_step=step)
            else:
                coming.append((step, step + inference_delay, answer.actions))
        planned = plan.action(step)
        assert planned is not None  # every chunk lasts until the next one takes over
        if seams is not None:
            seams.note(planned.action, takes_over=planned.for_step != playing)
        playing = planned.for_step
        if on_frame is not None:
            on_frame(simulation.observe())
        state = simulation.state()
        source.played(state, simulation.step(planned.action))
        step += 1
    return Episode(seed=seed, succeeded=simulation.succeeded(), num_steps=step, latencies_s=tuple(latencies))


def _check_images(simulation: Simulation, frame: Frame, seed: int, step: int) -> None:
    """A policy that is shown noise solves nothing, which says nothing of it. About 0.2 ms for three cameras."""
    from training.simulation.rendering import NoisyFrameError, check_frame  # mujoco opens GL when it is imported

    try:
        check_frame(frame.images)
    except NoisyFrameError as error:
        raise NoisyFrameError(f"{simulation.task}, seed {seed}, step {step}: {error}") from None


def _continued(
    plan: ActionBuffer, rule: PlaybackRule, step: int, inference_delay: int, execution_horizon: int
) -> RealTimeChunking | None:
    """What a chunk for `step` must continue; None where it need not, or where it is the first."""
    if not isinstance(rule, RealTimeChunkingRule) or not plan.remaining(step):
        return None
    return RealTimeChunking(
        previous_actions=plan.planned(step),
        inference_delay=inference_delay,
        execution_horizon=execution_horizon,
        method=rule.method,
        max_guidance_weight=rule.max_guidance_weight,
    )


def _action_groups(simulation: Simulation) -> list[Group]:
    """A body's action groups in the client's words."""
    return [
        Group(
            name=group.name,
            dim=group.dim,
            kind=group.kind.value,
            unit=group.unit,
            representation=group.representation.value,
        )
        for group in simulation.spec.action
    ]


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson, 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    spread = z / (1 + square / trials) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def summarise(simulation_name: str, task: str, episodes: Sequence[Episode], elapsed_s: float) -> Mapping[str, Any]:
    """One row of results: what the demo's table and results.json hold for a task."""
    latencies_ms = np.array([latency for episode in episodes for latency in episode.latencies_s]) * 1e3
    successes = sum(episode.succeeded for episode in episodes)
    low, high = wilson_interval(successes, len(episodes))
    return {
        "embodiment": simulation_name,
        "task": task,
        "episodes": len(episodes),
        "successes": successes,
        "success_low": low,
        "success_high": high,
        "latency_p50_ms": float(np.percentile(latencies_ms, 50)),
        "latency_p99_ms": float(np.percentile(latencies_ms, 99)),
        "chunks_per_s": len(latencies_ms) / elapsed_s,
        "mean_steps": float(np.mean([episode.num_steps for episode in episodes])),
        "seeds": [episode.seed for episode in episodes],
        "solved_seeds": [episode.seed for episode in episodes if episode.succeeded],
    }
