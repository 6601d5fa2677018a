"""A cell against the clock: what is added to the way shows in the measured delay, and what the clock did is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from premotor.client import Chunk, ServerTiming
from premotor.client.events import ActionPlayed, ChunkArrived, Held, PeriodsSkipped, SwapSeen
from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import encode_duration, encode_tensor
from training.__main__ import main
from training.evaluate import EvaluationError
from training.gateway_identity import GatewayIdentity
from training.playback import real_time
from training.playback.cells import Cell
from training.playback.real_time import PlayWatch, play_in_real_time
from training.playback.scenes import Row, summary
from training.rollout import RuleName
from training.simulation import registry
from training.simulation.task import Frame

Floats = npt.NDArray[np.float32]
JOINT = Group(name="joint", dim=1, kind=GroupKind.JOINT_POSITION, unit="rad")
SPEC = EmbodimentSpec(
    name="arm",
    cameras=(Camera(name="front", height=8, width=8),),
    state=(JOINT,),
    action=(JOINT,),
    # Slow enough that a busy machine answers before what it is asked for has run out.
    control_rate_hz=20.0,
)
REVISION, HORIZON, NUM_STEPS = "0123456789ab", 16, 40


class FakeSimulation:
    """A joint that is where it was told to be."""

    task, instruction, spec, max_steps = "reach", "reach", SPEC, NUM_STEPS
    environment_state_names = ()

    def __init__(self) -> None:
        self.joint, self.num_steps, self.seeds = 0.0, 0, []
        self.is_closed = False

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)
        self.joint, self.num_steps = 0.0, 0

    def observe(self) -> Frame:
        frames = {"front": np.zeros((8, 8, 3), np.uint8)}
        return Frame(images=frames, state=self.state(), environment_state=np.zeros(0, np.float32))

    def state(self) -> Floats:
        return np.array([self.joint], np.float32)

    def environment_state(self) -> Floats:
        return np.zeros(0, np.float32)

    def step(self, action: Floats) -> Floats:
        self.joint, self.num_steps = float(action[0]), self.num_steps + 1
        return action

    def succeeded(self) -> bool:
        return False

    def expert(self) -> Iterator[Floats]:
        raise AssertionError("a playback asked the expert")

    def close(self) -> None:
        self.is_closed = True


class Service(policy_pb2_grpc.PolicyServiceServicer):
    """Answers at once with a ramp of 0.01 rad a step, a jump of 1 rad at every other question."""

    def __init__(self) -> None:
        self.requests: list[policy_pb2.PredictChunkRequest] = []

    def GetPolicy(self, request: Any, context: grpc.ServicerContext) -> policy_pb2.GetPolicyResponse:
        group = policy_pb2.Group(
            name="joint",
            dim=1,
            unit="rad",
            kind=policy_pb2.Group.KIND_JOINT_POSITION,
            representation=policy_pb2.Group.REPRESENTATION_ABSOLUTE,
        )
        body = policy_pb2.Embodiment(
            name=SPEC.name,
            cameras=[policy_pb2.Camera(name="front", height=8, width=8)],
            state=[group],
            action=[group],
            control_rate_hz=SPEC.control_rate_hz,
        )
        return policy_pb2.GetPolicyResponse(
            policy=policy_pb2.Policy(
                name=request.policy,
                revision=REVISION,
                embodiments=[body],
                history_steps=0,
                action_horizon=HORIZON,
                execution_horizon=4,
                num_inference_steps=5,
                max_inference_steps=32,
                schema_digest="digest",
                real_time_chunking_methods=["METHOD_GUIDANCE"],
            )
        )

    def StreamChunks(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        none = encode_duration(0.0)
        for message in request_iterator:
            request = message.request
            self.requests.append(request)
            ramp = 0.01 * np.arange(HORIZON, dtype=np.float32)[:, None] + np.float32(len(self.requests) % 2)
            response = policy_pb2.PredictChunkResponse(
                robot_id=request.robot_id,
                episode_id=request.episode_id,
                request_id=request.request_id,
                actions=encode_tensor(ramp),
                revision=REVISION,
                seed=request.seed,
                timing=policy_pb2.Timing(decode=none, queue=none, inference=none, total=none),
            )
            if request.observation.HasField("capture_time"):
                response.capture_time.CopyFrom(request.observation.capture_time)
            if request.HasField("real_time_chunking"):
                response.real_time_chunking_method = policy_pb2.RealTimeChunking.METHOD_GUIDANCE
            yield policy_pb2.StreamChunksResponse(chunk=response)


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    answering = Service()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(answering, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield answering, f"127.0.0.1:{port}"
    assert server.stop(None).wait(10.0)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> FakeSimulation:
    fake = FakeSimulation()
    monkeypatch.setattr(real_time, "make_simulation", lambda task: fake)
    return fake


def play(address: str, rule: RuleName = "replace", *, added: int, revision: str = REVISION) -> Row:
    return play_in_real_time(
        Cell(rule=rule, delay_steps=added, task="reach"),
        address=address,
        identity=GatewayIdentity(),
        policy="tabletop",
        revision=revision,
        seeds=(7, 8),
    )


def test_a_chunk_is_late_by_what_is_added_to_its_way_and_at_least_a_step(
    service: tuple[Service, str], simulation: FakeSimulation
) -> None:
    answering, address = service
    near, far = (summary(play(address, added=added)) for added in (0, 12))
    for row, least in ((near, 1), (far, 13)):
        clock = row["real_time"]
        assert min(clock["delay_steps_mean"], clock["delay_steps_p50"]) >= least
        # The world goes on whatever happens: a scene is as many steps as its task has.
        assert (row["mean_steps"], row["episodes"], row["successes"]) == (NUM_STEPS, 2, 0)
        assert clock["num_failures"] == 0
        assert row["latency_p50_ms"] >= 1e3 * (least - 1) / SPEC.control_rate_hz
    assert near["seams"]["joint"]["num_seams"] > 0
    # Chunks of 16 actions that come 13 steps late have run out when the next one comes.
    assert far["seams"]["joint"]["num_seams"] == 0
    assert near["real_time"]["delay_steps_p50"] < far["real_time"]["delay_steps_p50"]
    # Until the first chunk has come there is nothing to play.
    assert far["real_time"]["num_held_steps"] + far["real_time"]["num_late_steps"] >= 2 * 12
    assert len({request.episode_id for request in answering.requests}) == 4
    assert simulation.is_closed


def test_chunks_that_continue_are_asked_for_and_counted_by_method(
    service: tuple[Service, str], simulation: FakeSimulation
) -> None:
    row = summary(play(service[1], "guidance", added=1))
    methods = row["real_time"]["methods"]
    assert methods["guidance"] > methods["none"] >= 2


def test_another_revision_than_the_measured_one_is_refused(
    service: tuple[Service, str], simulation: FakeSimulation
) -> None:
    with pytest.raises(EvaluationError, match=f"revision ba9876543210 was being measured, {REVISION} serves"):
        play(service[1], added=0, revision="ba9876543210")
    assert simulation.is_closed


def test_a_gateway_that_is_not_there_is_named(simulation: FakeSimulation) -> None:
    with pytest.raises(EvaluationError, match=r"policy 'tabletop' at 127\.0\.0\.1:1: "):
        play("127.0.0.1:1", added=0)


def test_the_verb_measures_a_served_policy_and_says_what_the_clock_did(
    service: tuple[Service, str], simulation: FakeSimulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "check_task", lambda task: None)
    monkeypatch.setattr(registry, "embodiment", lambda task: SPEC)
    asked = ["playback", "--real-time", "--address", service[1], "--policy", "tabletop", "--tasks", "reach"]
    asked += ["--rules", "replace", "prefix", "--delays", "2", "--episodes", "1", "--out", str(tmp_path)]
    assert main(asked) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(row["rule"], row["delay_steps"]) for row in found["rows"]] == [("replace", 2)]
    assert found["measurement"] == {"mode": "real time", "revision": REVISION, "first_seed": 100_000, "episodes": 1}
    assert [each["reason"] for each in found["not_applicable"]] == ["the policy was not trained to continue a prefix"]
    report = (tmp_path / "report.md").read_text()
    for said in ("What the clock did:", "| periods added | measured delay, steps |", "half each way", "none "):
        assert said in report
    num_asked = len(service[0].requests)
    assert main(asked) == 0
    assert len(service[0].requests) == num_asked


def played(step: int, action: float, for_step: int) -> ActionPlayed:
    return ActionPlayed(
        step=step,
        time_s=0.0,
        state=np.zeros(1, np.float32),
        action=np.array([action], np.float32),
        for_step=for_step,
        age_steps=step - for_step,
    )


class StillWorld:
    num_late_steps, num_stalled_steps, succeeded = 2, 1, True


def scene(watch: PlayWatch) -> Any:
    return watch.scene(7, StillWorld(), 9)  # pyright: ignore[reportArgumentType]


def test_a_seam_is_where_another_chunk_is_played() -> None:
    watch = PlayWatch(SPEC)
    for event in (played(0, 0.0, 0), played(1, 0.1, 0), played(2, 1.1, 2), played(3, 1.2, 2)):
        watch(event)
    found = scene(watch).seams["joint"]
    assert (found["num_seams"], found["num_elsewhere"]) == (1, 2)
    assert found["action_rms"] == pytest.approx(1.0)
    assert found["difference_rms"] == pytest.approx(0.9)


def test_no_jump_is_counted_over_steps_that_were_held_or_went_by() -> None:
    watch = PlayWatch(SPEC)
    held = Held(step=1, time_s=0.0, state=np.zeros(1), action=np.zeros(1), reason="underrun")
    skipped = PeriodsSkipped(step=4, num_periods=2)
    for event in (played(0, 0.0, 0), held, played(2, 5.0, 2), skipped, played(5, 9.0, 4), played(6, 9.5, 4)):
        watch(event)
    found = scene(watch)
    assert (found.seams["joint"]["num_seams"], found.seams["joint"]["num_elsewhere"]) == (0, 1)
    counts = found.real_time
    assert (counts.num_held_steps, counts.num_skipped_periods) == (1, 2)
    assert (counts.num_late_steps, counts.num_stalled_steps) == (2, 1)


def test_a_delay_is_counted_from_the_observations_step_and_a_scene_begins_anew() -> None:
    watch = PlayWatch(SPEC)
    timing = ServerTiming(decode_s=0.0, queue_s=0.0, inference_s=0.0, total_s=0.0)
    chunk = Chunk(
        actions=np.zeros((4, 1), np.float32), revision=REVISION, seed=0, timing=timing, robot_id="r", episode_id="e",
        request_id="q", capture_time_s=None, round_trip_s=0.1, real_time_chunking_method="prefix",
    )  # fmt: skip
    late = {"num_late_rows": 0, "num_outrun_rows": 0, "num_replaced_rows": 0}
    watch(ChunkArrived(step=9, chunk=chunk, for_step=4, latency_s=0.09, **late))
    found = scene(watch)
    assert (found.real_time.delays_steps, found.latencies_s) == ((5,), (0.09,))
    assert found.real_time.methods == {"prefix": 1}
    watch.begin()
    assert scene(watch).real_time.delays_steps == ()


def test_a_swap_ends_the_measurement() -> None:
    with pytest.raises(EvaluationError, match="revision a was being measured, b answers"):
        PlayWatch(SPEC)(SwapSeen(step=3, previous_revision="a", revision="b"))
