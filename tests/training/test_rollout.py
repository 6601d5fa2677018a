"""Episodes in closed loop: when a chunk is asked for, what the question holds, and the figures that come of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from policy.policy import Policy
from policy.request import ChunkRequest
from policy.request import RealTimeChunking as ModelChunking
from premotor.client import PolicyClient, RealTimeChunking, RealTimeChunkingRule, TemporalEnsemble
from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import decode_tensor, encode_duration, encode_tensor
from training.evaluate import Target, format_table, write_results
from training.rollout import (
    RULES,
    Answer,
    Episode,
    HistoryCondition,
    HistoryMode,
    LocalSource,
    PastSteps,
    RuleName,
    ServedSource,
    run_episode,
    summarise,
    wilson_interval,
)
from training.seams import SeamMeter
from training.simulation.rendering import NoisyFrameError
from training.simulation.task import Frame, Simulation

Floats = npt.NDArray[np.float32]

SPEC = EmbodimentSpec(
    name="slider",
    cameras=(Camera(name="front", height=24, width=32), Camera(name="wrist", height=24, width=32)),
    state=(Group(name="position", dim=3, kind=GroupKind.OTHER, unit="m"),),
    action=(Group(name="velocity", dim=2, kind=GroupKind.OTHER, unit="m/s"),),
    control_rate_hz=10.0,
)
HORIZON, EXECUTION_HORIZON, HISTORY_STEPS = 4, 3, 5


class FakeSimulation:
    """A clock: its state counts steps, an action is executed clipped to 1, `solved_at` steps solve it."""

    task, instruction, spec = "slide", "slide it over", SPEC
    environment_state_names = ("x",)

    def __init__(self, *, max_steps: int, solved_at: int = 1000) -> None:
        self.max_steps, self._solved_at = max_steps, solved_at
        self.events: list[str] = []
        self._step = self._seed = 0

    def reset(self, seed: int) -> None:
        self.events.append(f"reset {seed}")
        self._step, self._seed = 0, seed

    def observe(self) -> Frame:
        self.events.append(f"observe {self._step}")
        ramp = np.linspace(0, 200, 32, dtype=np.uint8)[None, :, None].repeat(24, 0).repeat(3, 2)
        images = {name: ramp + np.uint8(shift + self._step) for shift, name in enumerate(SPEC.camera_names)}
        return Frame(images=images, state=self.state(), environment_state=np.zeros(1, np.float32))

    def state(self) -> Floats:
        return np.array([self._step, self._seed, 0.5], np.float32)

    def step(self, action: Floats) -> Floats:
        self.events.append(f"step {self._step}")
        self._step += 1
        return np.clip(action, -1, 1)

    def succeeded(self) -> bool:
        return self._step >= self._solved_at

    def expert(self) -> Iterator[Floats]:
        raise AssertionError("an evaluation asked the expert")

    def close(self) -> None: ...


@dataclass
class FakeSource:
    """Answers with chunks whose rows name question and row; keeps what it was asked and told."""

    execution_horizon: int = EXECUTION_HORIZON
    started: list[str] = field(default_factory=list)
    asked_at: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    chunkings: list[RealTimeChunking | None] = field(default_factory=list)
    steps: list[tuple[Floats, Floats]] = field(default_factory=list)

    def start_episode(self, simulation: Simulation, episode_id: str) -> None:
        self.started.append(episode_id)

    def predict(
        self, simulation: Simulation, frame: Frame, seed: int, chunking: RealTimeChunking | None = None
    ) -> Answer:
        self.chunkings.append(chunking)
        self.asked_at.append(int(frame.state[0]))
        self.seeds.append(seed)
        rows = np.arange(HORIZON, dtype=np.float32)
        return Answer(actions=np.stack([rows, -rows], 1), latency_s=0.001 * len(self.asked_at))

    def played(self, state: Floats, action: Floats) -> None:
        self.steps.append((state, action))


def test_a_new_chunk_is_asked_for_after_every_execution_horizon() -> None:
    source = FakeSource()
    episode = run_episode(FakeSimulation(max_steps=7), source, seed=4)
    assert source.asked_at == [0, 3, 6]
    assert episode == Episode(seed=4, succeeded=False, num_steps=7, latencies_s=(0.001, 0.002, 0.003))


def test_an_episode_ends_with_its_success_in_the_middle_of_a_chunk() -> None:
    simulation, source = FakeSimulation(max_steps=50, solved_at=5), FakeSource()
    episode = run_episode(simulation, source, seed=0)
    assert (episode.succeeded, episode.num_steps, source.asked_at) == (True, 5, [0, 3])
    assert simulation.events[-1] == "step 4"


def test_a_scene_that_is_solved_from_the_start_asks_nothing() -> None:
    episode = run_episode(FakeSimulation(max_steps=5, solved_at=0), FakeSource(), seed=0)
    assert episode == Episode(seed=0, succeeded=True, num_steps=0, latencies_s=())


def noisy_from(step: int) -> FakeSimulation:
    """Its wrist camera shows noise from a step on, as a broken GL context does."""
    simulation = FakeSimulation(max_steps=7)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)

    def observe() -> Frame:
        frame = FakeSimulation.observe(simulation)
        return replace(frame, images={**frame.images, "wrist": noise}) if frame.state[0] >= step else frame

    simulation.observe = observe
    return simulation


@pytest.mark.parametrize(("noisy_step", "asked_at", "said"), [(0, [], 0), (1, [0], 3), (4, [0, 3], 6)])
def test_no_policy_is_asked_about_noise_and_the_error_says_where_it_was(
    noisy_step: int, asked_at: list[int], said: int
) -> None:
    source = FakeSource()
    with pytest.raises(NoisyFrameError, match=rf"^slide, seed 4, step {said}: camera 'wrist' has pixel noise \d\d"):
        run_episode(noisy_from(noisy_step), source, seed=4)
    assert source.asked_at == asked_at


def test_the_source_is_told_the_state_before_a_step_and_the_action_as_executed() -> None:
    source = FakeSource()
    run_episode(FakeSimulation(max_steps=4), source, seed=9)
    states, actions = zip(*source.steps, strict=True)
    np.testing.assert_array_equal(np.stack(states), [[step, 9, 0.5] for step in range(4)])
    # Row 2 of a chunk is (2, -2); the fourth step plays row 0 of the second chunk.
    np.testing.assert_array_equal(np.stack(actions), [[0, 0], [1, -1], [1, -1], [0, 0]])


def test_a_late_chunk_takes_over_from_the_action_meant_for_that_step() -> None:
    source = FakeSource()
    run_episode(FakeSimulation(max_steps=6), source, seed=9, inference_delay=1)
    assert source.asked_at == [0, 3]
    # Rows 0 to 3 of the first chunk, then from row 1 on of the second, which was asked for one step before.
    assert [float(action[0]) for _, action in source.steps] == [0, 1, 1, 1, 1, 1]
    planned = _played_rows(inference_delay=1)
    assert planned == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    assert _played_rows(inference_delay=0) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def _played_rows(*, inference_delay: int) -> list[tuple[int, int]]:
    """(question, row) of every action of seven steps."""

    class Numbered(FakeSource):
        def predict(
            self, simulation: Simulation, frame: Frame, seed: int, chunking: RealTimeChunking | None = None
        ) -> Answer:
            question = len(self.asked_at)
            answer = super().predict(simulation, frame, seed, chunking)
            return Answer(actions=answer.actions / 10 + np.array([0, question / 10], np.float32), latency_s=0.0)

    source = Numbered()
    run_episode(FakeSimulation(max_steps=7), source, seed=0, inference_delay=inference_delay)
    actions = np.stack([action for _, action in source.steps])
    return [(round(float(10 * (y + x))), round(float(10 * x))) for x, y in actions]


def test_a_chunk_that_is_too_short_for_the_delay_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 actions, playing it with this delay takes 5"):
        run_episode(FakeSimulation(max_steps=6), FakeSource(), seed=0, inference_delay=2)


def test_a_chunk_that_continues_is_told_what_is_left_of_the_one_before() -> None:
    source = FakeSource(execution_horizon=2)
    run_episode(FakeSimulation(max_steps=6), source, seed=0, inference_delay=1, rule=RULES["guidance"])
    first, second, third = source.chunkings
    assert first is None and second is not None and third is not None
    for chunking in (second, third):
        assert (chunking.method, chunking.inference_delay, chunking.execution_horizon) == ("guidance", 1, 2)
        # Rows 2 and 3 of the chunk before.
        np.testing.assert_array_equal(chunking.previous_actions, [[2, -2], [3, -3]])


@pytest.mark.parametrize("rule", ["replace", "ensemble"])
def test_other_rules_ask_for_chunks_of_their_own(rule: RuleName) -> None:
    source = FakeSource(execution_horizon=2)
    simulation = FakeSimulation(max_steps=6)
    simulation.spec = replace(SPEC, action=(replace(SPEC.action[0], kind=GroupKind.JOINT_VELOCITY),))
    run_episode(simulation, source, seed=0, inference_delay=1, rule=RULES[rule])
    assert source.chunkings == [None, None, None]


def test_an_ensemble_plays_the_mean_of_the_chunks_that_hold_a_step() -> None:
    simulation, source = FakeSimulation(max_steps=4), FakeSource(execution_horizon=2)
    simulation.spec = replace(SPEC, action=(replace(SPEC.action[0], kind=GroupKind.JOINT_VELOCITY),))
    commands: list[Floats] = []
    simulation.step = lambda action: commands.append(action) or FakeSimulation.step(simulation, action)
    run_episode(simulation, source, seed=0, rule=TemporalEnsemble(coefficient=0.0))
    # Steps 2 and 3 are rows 2 and 3 of the first chunk, rows 0 and 1 of the second.
    np.testing.assert_allclose(np.stack(commands)[:, 0], [0, 1, 1, 2])


def test_a_chunk_cannot_continue_one_that_is_still_to_come() -> None:
    with pytest.raises(ValueError, match="inference_delay is 2, expected at most 1"):
        run_episode(
            FakeSimulation(max_steps=6),
            FakeSource(execution_horizon=1),
            seed=0,
            inference_delay=2,
            rule=RULES["prefix"],
        )


def test_a_policy_in_process_takes_the_method_that_a_gateway_would() -> None:
    policy = RecordingPolicy()
    policy.config = SimpleNamespace(execution_horizon=2, history_steps=0, max_inference_delay=1)
    source = LocalSource(cast(Policy, policy), history=HistoryCondition())
    for delay in (1, 2):
        run_episode(FakeSimulation(max_steps=4), source, 0, inference_delay=delay, rule=RealTimeChunkingRule())
    first, near, second, far = policy.chunkings
    assert first is None and second is None and near is not None and far is not None
    assert (near.method, near.inference_delay) == ("prefix", 1)
    assert (far.method, far.inference_delay) == ("guidance", 2)


def test_jumps_are_counted_at_the_seams_and_apart_from_them_elsewhere() -> None:
    meter = SeamMeter(SPEC.action)
    for _ in range(2):
        meter.start()
        run_episode(FakeSimulation(max_steps=6), FakeSource(), seed=0, seams=meter)
    figures = meter.figures()["velocity"]
    # Chunks of rows 0, 1, 2: two steps of 1 within each, a jump from 2 to 0 at the seam, whose change is from 1 to -2.
    assert (figures["unit"], figures["num_seams"]) == ("m/s", 2)
    assert figures["action_max"] == figures["action_rms"] == 2.0
    assert figures["difference_max"] == figures["difference_rms"] == 3.0
    assert figures["action_rms_elsewhere"] == 1.0
    # After the seam the step is 1 again, which changes by 3; the other two changes of an episode are 0.
    assert figures["difference_rms_elsewhere"] == pytest.approx(np.sqrt(9 / 3))


def test_an_episode_of_one_chunk_has_no_seam() -> None:
    meter = SeamMeter(SPEC.action)
    run_episode(FakeSimulation(max_steps=3), FakeSource(), seed=0, seams=meter)
    figures = meter.figures()["velocity"]
    assert (figures["num_seams"], figures["action_max"], figures["difference_rms"]) == (0, None, None)


@pytest.mark.parametrize(
    ("mode", "delay", "expected"),
    [("none", 0, []), ("true", 0, [4, 5, 6]), ("true", 2, [2, 3, 4]), ("true", 9, []), ("frozen", 0, [0, 1, 2])],
)
def test_a_condition_decides_which_past_a_policy_sees(mode: HistoryMode, delay: int, expected: list[int]) -> None:
    past = PastSteps(HistoryCondition(mode=mode, delay_steps=delay), 3)
    for step in range(7):
        past.append(np.float32([step]), np.float32([0]))
    assert [int(state[0]) for state, _ in past.window(seed=0)] == expected


def test_a_shuffled_past_holds_the_true_steps_in_another_order() -> None:
    past = PastSteps(HistoryCondition(mode="shuffled"), 8)
    for step in range(10):
        past.append(np.float32([step]), np.float32([0]))
    seen = [int(state[0]) for state, _ in past.window(seed=1)]
    assert sorted(seen) == list(range(2, 10)) != seen
    assert seen == [int(state[0]) for state, _ in past.window(seed=1)]


def test_only_a_true_history_can_be_delayed() -> None:
    with pytest.raises(ValueError, match=r"delay is 3 steps with mode 'frozen'"):
        HistoryCondition(mode="frozen", delay_steps=3)


def test_the_scene_is_reset_before_the_episode_starts_and_every_question_has_its_own_seed() -> None:
    simulation, source = FakeSimulation(max_steps=9), FakeSource()
    run_episode(simulation, source, seed=2)
    run_episode(simulation, source, seed=3)
    assert simulation.events[0] == "reset 2"
    assert source.started == ["slide-2", "slide-3"]
    assert len(set(source.seeds)) == len(source.seeds) == 6
    again = FakeSource()
    run_episode(simulation, again, seed=2)
    assert again.seeds == source.seeds[:3]


def test_a_filmed_episode_shows_a_frame_before_every_step_and_plays_the_same() -> None:
    frames: list[Frame] = []
    filmed = run_episode(FakeSimulation(max_steps=5), FakeSource(), seed=1, on_frame=frames.append)
    assert [int(frame.state[0]) for frame in frames] == [0, 1, 2, 3, 4]
    assert filmed == run_episode(FakeSimulation(max_steps=5), FakeSource(), seed=1)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a policy was asked, however the question came."""

    embodiment: str
    images: Mapping[str, npt.NDArray[np.uint8]]
    state: Floats
    instruction: str
    history_states: Floats
    history_actions: Floats
    seed: int


def answer_to(question: Question) -> Floats:
    return np.full((HORIZON, 2), question.state[0] / 4, np.float32)


class RecordingPolicy:
    """A policy in process that keeps its questions."""

    config = SimpleNamespace(execution_horizon=EXECUTION_HORIZON, history_steps=HISTORY_STEPS)

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.chunkings: list[ModelChunking | None] = []
        self.num_inference_steps: list[int | None] = []

    def predict_chunk(self, batch: list[ChunkRequest]) -> list[torch.Tensor]:
        (request,) = batch
        self.num_inference_steps.append(request.num_inference_steps)
        self.chunkings.append(request.real_time_chunking)
        states, actions = request.history_states, request.history_actions
        question = Question(
            embodiment=request.embodiment,
            images={name: frame.numpy() for name, frame in request.images.items()},
            state=request.state.numpy(),
            instruction=request.instruction,
            history_states=np.zeros((0, 3), np.float32) if states is None else states.numpy(),
            history_actions=np.zeros((0, 2), np.float32) if actions is None else actions.numpy(),
            seed=request.seed,
        )
        self.questions.append(question)
        return [torch.from_numpy(answer_to(question))]


class RecordingService(policy_pb2_grpc.PolicyServiceServicer):
    """A served policy that keeps its questions."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.requests: list[policy_pb2.PredictChunkRequest] = []

    def GetPolicy(self, request: Any, context: grpc.ServicerContext) -> policy_pb2.GetPolicyResponse:
        group = policy_pb2.Group
        form, kind = group.REPRESENTATION_ABSOLUTE, group.KIND_OTHER
        embodiment = policy_pb2.Embodiment(
            name=SPEC.name,
            cameras=[policy_pb2.Camera(name=name, height=24, width=32) for name in SPEC.camera_names],
            state=[group(name="position", dim=3, unit="m", kind=kind, representation=form)],
            action=[group(name="velocity", dim=2, unit="m/s", kind=kind, representation=form)],
            control_rate_hz=10.0,
        )
        return policy_pb2.GetPolicyResponse(
            policy=policy_pb2.Policy(
                name=request.policy,
                revision="0123456789ab",
                embodiments=[embodiment],
                history_steps=HISTORY_STEPS,
                action_horizon=HORIZON,
                execution_horizon=EXECUTION_HORIZON,
                num_inference_steps=5,
                max_inference_steps=32,
                schema_digest="digest",
            )
        )

    def PredictChunk(self, request: Any, context: grpc.ServicerContext) -> policy_pb2.PredictChunkResponse:
        def floats(tensor: policy_pb2.Tensor, dim: int) -> Floats:
            if not tensor.shape:
                return np.zeros((0, dim), np.float32)
            return decode_tensor(tensor, field="history", dtype=np.float32, shape=(None, dim)).copy()

        observation = request.observation
        question = Question(
            embodiment=request.embodiment,
            images={name: simplejpeg.decode_jpeg(image.compressed) for name, image in observation.images.items()},
            state=decode_tensor(observation.state, field="state", dtype=np.float32, shape=(3,)).copy(),
            instruction=observation.instruction,
            history_states=floats(request.history.states, 3),
            history_actions=floats(request.history.actions, 2),
            seed=request.seed,
        )
        self.questions.append(question)
        self.requests.append(request)
        none = encode_duration(0.0)
        return policy_pb2.PredictChunkResponse(
            robot_id=request.robot_id,
            episode_id=request.episode_id,
            request_id=request.request_id,
            actions=encode_tensor(answer_to(question)),
            revision="0123456789ab",
            seed=request.seed,
            timing=policy_pb2.Timing(decode=none, queue=none, inference=none, total=none),
        )


@pytest.fixture
def service() -> Iterator[tuple[RecordingService, PolicyClient]]:
    recording = RecordingService()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(recording, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with PolicyClient(f"127.0.0.1:{port}") as client:
        yield recording, client
    assert server.stop(None).wait(10.0)


@pytest.mark.parametrize("history", [False, True])
def test_a_policy_in_process_and_a_served_one_are_asked_the_same(
    service: tuple[RecordingService, PolicyClient], history: bool
) -> None:
    recording, client = service
    policy = RecordingPolicy()
    local = LocalSource(cast(Policy, policy), history=HistoryCondition(mode="true" if history else "none"))
    served = ServedSource(client, "tabletop", robot_id="robot", history=history)
    assert local.execution_horizon == served.execution_horizon == EXECUTION_HORIZON
    for seed in (7, 8):
        here = run_episode(FakeSimulation(max_steps=11), local, seed)
        there = run_episode(FakeSimulation(max_steps=11), served, seed)
        assert (here.succeeded, here.num_steps) == (there.succeeded, there.num_steps)
    assert len(policy.questions) == len(recording.questions) == 8
    for ours, theirs in zip(policy.questions, recording.questions, strict=True):
        assert (ours.embodiment, ours.instruction, ours.seed) == (theirs.embodiment, theirs.instruction, theirs.seed)
        for name in ("state", "history_states", "history_actions"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert ours.images.keys() == theirs.images.keys()
        for camera, image in ours.images.items():
            # Served frames went through JPEG.
            assert np.abs(image.astype(int) - theirs.images[camera]).max() <= 4


def test_a_served_question_names_robot_and_episode(service: tuple[RecordingService, PolicyClient]) -> None:
    recording, client = service
    run_episode(FakeSimulation(max_steps=2), ServedSource(client, "tabletop", robot_id="sim-slide", history=False), 5)
    (request,) = recording.requests
    assert (request.policy, request.robot_id, request.episode_id) == ("tabletop", "sim-slide", "slide-5")
    assert request.revision == ""


def test_a_served_question_pins_the_revision_that_its_source_is_of(
    service: tuple[RecordingService, PolicyClient],
) -> None:
    recording, client = service
    source = ServedSource(client, "tabletop", robot_id="sim-slide", history=False, revision="0123456789ab")
    run_episode(FakeSimulation(max_steps=2), source, 5)
    assert [request.revision for request in recording.requests] == ["0123456789ab"]


def test_history_is_the_last_steps_of_this_episode_oldest_first() -> None:
    policy = RecordingPolicy()
    source = LocalSource(cast(Policy, policy), history=HistoryCondition(mode="true"))
    for seed in (1, 2):
        run_episode(FakeSimulation(max_steps=7), source, seed)
    states = [question.history_states for question in policy.questions]
    assert [list(rows[:, 0]) for rows in states] == 2 * [[], [0, 1, 2], [1, 2, 3, 4, 5]]
    assert {row[1] for rows in states[3:] for row in rows} == {2.0}
    # The second chunk's actions are 0.75 each, sent from step 3 on.
    np.testing.assert_array_equal(policy.questions[2].history_actions[:, 0], [0, 0, 0.75, 0.75, 0.75])


@pytest.mark.parametrize("num_inference_steps", [None, 4])
def test_a_policy_in_process_is_asked_for_the_euler_steps_of_its_source(num_inference_steps: int | None) -> None:
    policy = RecordingPolicy()
    source = LocalSource(cast(Policy, policy), history=HistoryCondition(), num_inference_steps=num_inference_steps)
    run_episode(FakeSimulation(max_steps=7), source, 0)
    assert policy.num_inference_steps == [num_inference_steps] * 3


def test_without_history_none_is_sent() -> None:
    policy = RecordingPolicy()
    run_episode(FakeSimulation(max_steps=7), LocalSource(cast(Policy, policy), history=HistoryCondition()), 0)
    assert all(len(question.history_states) == 0 for question in policy.questions)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.490, 0.943),
        (0, 20, 0.0, 0.161),
        (20, 20, 0.839, 1.0),
        (50, 50, 0.929, 1.0),
        (35, 50, 0.562, 0.809),
        (1, 1, 0.207, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_the_tables(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-4)


def episodes() -> list[Episode]:
    return [
        Episode(seed=10, succeeded=True, num_steps=40, latencies_s=(0.010, 0.020)),
        Episode(seed=11, succeeded=False, num_steps=100, latencies_s=(0.030,)),
        Episode(seed=12, succeeded=True, num_steps=40, latencies_s=(0.040, 0.050)),
    ]


def test_a_row_counts_episodes_chunks_and_latencies() -> None:
    row = summarise("slider", "slide", episodes(), elapsed_s=2.0)
    assert (row["embodiment"], row["task"], row["episodes"], row["successes"]) == ("slider", "slide", 3, 2)
    assert (row["success_low"], row["success_high"]) == wilson_interval(2, 3)
    assert row["latency_p50_ms"] == pytest.approx(30.0)
    assert row["latency_p99_ms"] == pytest.approx(49.6)
    assert row["chunks_per_s"] == pytest.approx(2.5)
    assert row["mean_steps"] == pytest.approx(60.0)
    assert (row["seeds"], row["solved_seeds"]) == ([10, 11, 12], [10, 12])


def test_the_table_has_a_line_a_task_and_the_mean_of_their_rates() -> None:
    solved = [Episode(seed=1, succeeded=True, num_steps=5, latencies_s=(0.1,))]
    rows = [summarise("slider", "slide", episodes(), 2.0), summarise("slider", "push", solved, 0.1)]
    header, slide, push, mean = format_table(rows).splitlines()
    assert header.split()[:4] == ["body", "task", "episodes", "success"]
    assert slide.split() == ["slider", "slide", "3", "67%", "21%", "to", "94%", "30.0", "49.6", "2.5"]
    assert push.split()[:4] == ["slider", "push", "1", "100%"]
    assert mean.split() == ["mean", "over", "tasks", "83%"]


def test_results_are_a_row_a_task_with_their_context_and_replace_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    rows = [summarise("slider", "slide", episodes(), 2.0)]
    write_results(path, [], policy="old")
    write_results(path, rows, policy="tabletop", backend="triton")
    (written,) = json.loads(path.read_text())
    assert written == {**rows[0], "policy": "tabletop", "backend": "triton"}
    assert [found.name for found in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, "either a checkpoint or an address"),
        ({"checkpoint": Path("x"), "address": "127.0.0.1:1", "policy": "p"}, "either a checkpoint or an address"),
        ({"address": "127.0.0.1:1"}, "needs the name of a policy"),
    ],
)
def test_a_target_is_one_thing(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Target(**arguments)
