"""A real gRPC server on loopback that answers as a gateway would, and misbehaves where an instruction says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest

from premotor.v1 import policy_pb2, policy_pb2_grpc
from premotor.wire import encode_duration, encode_tensor, error_metadata

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
HOLD_TIMEOUT_S = 10.0
ACTION_HORIZON = 4
ACTION_DIM = 3


class FakePolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Answers with the state plus the step number as actions.

    Instructions it obeys: "error CODE" fails with details, "plain CODE" without, "hold" waits for `release`, "later"
    (in a stream) is answered after the next other request and "lose" never, "end" and "break" end the stream, and those
    of `_spoil`.
    `schemas` are those of single revisions, and `says_schema` is False for a server from before it was said.
    """

    def __init__(self) -> None:
        self.requests: list[policy_pb2.PredictChunkRequest] = []
        self.stream_timeouts_s: list[float] = []
        self.arrived = threading.Event()
        self.release = threading.Event()
        # While it is set no request arrives, and nobody is told.
        self.is_cut_off = threading.Event()
        self.num_described = 0
        self.schemas: dict[str, str] = {}
        self.says_schema = True
        self.policy = policy_pb2.Policy(
            name="tabletop",
            revision="0123456789ab",
            variant="history",
            embodiments=[
                policy_pb2.Embodiment(
                    name="sawyer",
                    cameras=[policy_pb2.Camera(name="front", height=24, width=32)],
                    state=[_group("arm", 3, "m", (-1.0, -1.0, 0.0), (1.0, 1.0, 0.5))],
                    action=[_group("arm", 2, "m", delta=True), _group("gripper", 1, "1", (0.0,), (1.0,))],
                    control_rate_hz=80.0,
                )
            ],
            history_steps=2,
            action_horizon=ACTION_HORIZON,
            execution_horizon=2,
            num_inference_steps=5,
            max_inference_steps=32,
            schema_digest="digest",
            real_time_chunking_methods=["METHOD_GUIDANCE", "METHOD_PREFIX"],
            max_inference_delay=2,
        )

    def GetPolicy(self, request, context):
        if request.policy != "tabletop":
            self._fail(
                context, "NOT_FOUND", field="policy", message=f"no {request.policy!r}; the nearest is 'tabletop'"
            )
        self.num_described += 1
        return policy_pb2.GetPolicyResponse(policy=self.policy)

    def ListPolicies(self, request, context):
        return policy_pb2.ListPoliciesResponse(policies=[self.policy])

    def PredictChunk(self, request, context):
        if self.is_cut_off.is_set():
            self.release.wait(HOLD_TIMEOUT_S if context.time_remaining() is None else context.time_remaining() + 0.1)
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut off")
        self.requests.append(request)
        self.arrived.set()
        verb, _, rest = request.observation.instruction.partition(" ")
        if verb == "error":
            self._fail(
                context, rest, request=request, field="observation.state", message="what came, what was expected"
            )
        if verb == "plain":
            context.abort(grpc.StatusCode[rest], "no details")
        if verb == "hold":
            self.release.wait(HOLD_TIMEOUT_S)
        return self._answer(request)

    def StreamChunks(self, request_iterator, context):
        held: list[policy_pb2.PredictChunkRequest] = []
        for message in request_iterator:
            request = message.request
            if self.is_cut_off.is_set():
                continue
            self.requests.append(request)
            self.stream_timeouts_s.append(message.timeout.ToTimedelta().total_seconds())
            self.arrived.set()
            verb, _, rest = request.observation.instruction.partition(" ")
            if verb == "later":
                held.append(request)
                continue
            if verb == "lose":
                continue
            if verb == "hold":
                self.release.wait(HOLD_TIMEOUT_S)
            if verb == "end":
                return
            if verb == "break":
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
            if verb == "error":
                error = _request_error(request, rest, "observation.state", "what came, what was expected")
                yield policy_pb2.StreamChunksResponse(error=error)
            else:
                yield policy_pb2.StreamChunksResponse(chunk=self._answer(request))
            for late in held:
                yield policy_pb2.StreamChunksResponse(chunk=self._answer(late))
            held.clear()

    def _answer(self, request: policy_pb2.PredictChunkRequest) -> policy_pb2.PredictChunkResponse:
        state = np.frombuffer(request.observation.state.data, np.float32)
        actions = np.arange(ACTION_HORIZON, dtype=np.float32)[:, None] + state[None, :]
        revision = request.revision or self.policy.revision
        response = policy_pb2.PredictChunkResponse(
            robot_id=request.robot_id,
            episode_id=request.episode_id,
            request_id=request.request_id,
            actions=encode_tensor(actions),
            revision=revision,
            schema_digest=self.schemas.get(revision, self.policy.schema_digest) if self.says_schema else "",
            seed=request.seed if request.HasField("seed") else 7,
            timing=policy_pb2.Timing(
                decode=encode_duration(0.001),
                queue=encode_duration(0.002),
                inference=encode_duration(0.003),
                total=encode_duration(0.0065),
            ),
        )
        if request.observation.HasField("capture_time"):
            response.capture_time.CopyFrom(request.observation.capture_time)
        if request.HasField("real_time_chunking"):
            response.real_time_chunking_method = request.real_time_chunking.method or "METHOD_GUIDANCE"
        self._spoil(request.observation.instruction, response, actions)
        return response

    def _spoil(self, how: str, response: policy_pb2.PredictChunkResponse, actions: np.ndarray) -> None:
        if how in ("request_id", "robot_id", "episode_id", "revision"):
            setattr(response, how, "another")
        elif how == "seed":
            response.seed += 1
        elif how == "capture_time":
            response.capture_time.CopyFrom(encode_duration(1.0))
        elif how == "nan":
            actions[2, 1] = np.nan
            response.actions.CopyFrom(encode_tensor(actions))
        elif how == "no actions":
            response.actions.CopyFrom(encode_tensor(actions[:0]))
        elif how == "wrong shape":
            response.actions.CopyFrom(encode_tensor(actions[:, :2]))
        elif how == "wrong length":
            response.actions.data = response.actions.data[:-4]
        elif how == "no timing":
            response.ClearField("timing")
        elif how == "no revision":
            response.revision = ""
        elif how.startswith("method "):
            response.real_time_chunking_method = int(how.removeprefix("method "))

    def _fail(self, context, code: str, *, field: str, message: str, request=None) -> None:
        error = _request_error(request or policy_pb2.PredictChunkRequest(), code, field, message)
        context.set_trailing_metadata(error_metadata(error))
        context.abort(grpc.StatusCode[code.partition(" ")[0]], message)


def _request_error(
    request: policy_pb2.PredictChunkRequest, code: str, field: str, message: str
) -> policy_pb2.RequestError:
    """`code` may be followed by the number of a reason."""
    code, _, reason = code.partition(" ")
    error = policy_pb2.RequestError(
        robot_id=request.robot_id,
        episode_id=request.episode_id,
        request_id=request.request_id,
        code=grpc.StatusCode[code].value[0],
        message=message,
        field=field,
        reason=int(reason or 0),
    )
    if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        error.retry_delay.CopyFrom(encode_duration(0.25))
    return error


def _group(
    name: str, dim: int, unit: str, lower: tuple[float, ...] = (), upper: tuple[float, ...] = (), delta: bool = False
) -> policy_pb2.Group:
    kind = policy_pb2.Group.KIND_GRIPPER if name == "gripper" else policy_pb2.Group.KIND_END_EFFECTOR_POSITION
    form = policy_pb2.Group.REPRESENTATION_DELTA if delta else policy_pb2.Group.REPRESENTATION_ABSOLUTE
    return policy_pb2.Group(
        name=name, dim=dim, unit=unit, lower_limit=lower, upper_limit=upper, kind=kind, representation=form
    )


class FakeGateway:
    """The service on a port of its own, which a restart keeps."""

    def __init__(self) -> None:
        self.service = FakePolicyService()
        self.address = ""
        self._port = 0
        self._server: grpc.Server | None = None

    def start(self) -> None:
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=12), options=options)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self.service, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self.address = f"127.0.0.1:{self._port}"
        self._server.start()

    def stop(self) -> None:
        """Cancels what is in flight."""
        assert self._server is not None
        stopped = self._server.stop(None)
        self.service.release.set()
        assert stopped.wait(HOLD_TIMEOUT_S)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    running = FakeGateway()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def arguments() -> dict:
    """A good call, in the words of `predict_chunk`."""
    return {
        "policy": "tabletop",
        "robot_id": "robot-1",
        "episode_id": "episode-1",
        "images": {"front": np.full((24, 32, 3), 128, np.uint8)},
        "state": np.array([0.5, 0.25, 0.125], np.float32),
        "instruction": "pick up the block",
        "image_encoding": "raw",
    }
