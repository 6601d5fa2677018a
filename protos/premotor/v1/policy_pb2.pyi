import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("data_type", "shape", "data")
    class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DATA_TYPE_UNSPECIFIED: _ClassVar[Tensor.DataType]
        DATA_TYPE_FLOAT32: _ClassVar[Tensor.DataType]
        DATA_TYPE_UINT8: _ClassVar[Tensor.DataType]
    DATA_TYPE_UNSPECIFIED: Tensor.DataType
    DATA_TYPE_FLOAT32: Tensor.DataType
    DATA_TYPE_UINT8: Tensor.DataType
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    data_type: Tensor.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, data_type: _Optional[_Union[Tensor.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("compressed", "pixels")
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    compressed: bytes
    pixels: Tensor
    def __init__(self, compressed: _Optional[bytes] = ..., pixels: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("images", "state", "instruction", "capture_time")
    class ImagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Image
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    images: _containers.MessageMap[str, Image]
    state: Tensor
    instruction: str
    capture_time: _duration_pb2.Duration
    def __init__(self, images: _Optional[_Mapping[str, Image]] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ..., instruction: _Optional[str] = ..., capture_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("states", "actions", "num_valid_steps")
    STATES_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_VALID_STEPS_FIELD_NUMBER: _ClassVar[int]
    states: Tensor
    actions: Tensor
    num_valid_steps: int
    def __init__(self, states: _Optional[_Union[Tensor, _Mapping]] = ..., actions: _Optional[_Union[Tensor, _Mapping]] = ..., num_valid_steps: _Optional[int] = ...) -> None: ...

class RealTimeChunking(_message.Message):
    __slots__ = ("previous_actions", "inference_delay", "execution_horizon", "method", "max_guidance_weight")
    class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        METHOD_UNSPECIFIED: _ClassVar[RealTimeChunking.Method]
        METHOD_GUIDANCE: _ClassVar[RealTimeChunking.Method]
        METHOD_PREFIX: _ClassVar[RealTimeChunking.Method]
    METHOD_UNSPECIFIED: RealTimeChunking.Method
    METHOD_GUIDANCE: RealTimeChunking.Method
    METHOD_PREFIX: RealTimeChunking.Method
    PREVIOUS_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_DELAY_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_HORIZON_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    previous_actions: Tensor
    inference_delay: int
    execution_horizon: int
    method: RealTimeChunking.Method
    max_guidance_weight: float
    def __init__(self, previous_actions: _Optional[_Union[Tensor, _Mapping]] = ..., inference_delay: _Optional[int] = ..., execution_horizon: _Optional[int] = ..., method: _Optional[_Union[RealTimeChunking.Method, str]] = ..., max_guidance_weight: _Optional[float] = ...) -> None: ...

class PredictChunkRequest(_message.Message):
    __slots__ = ("policy", "revision", "robot_id", "episode_id", "request_id", "observation", "history", "seed", "num_inference_steps", "embodiment", "num_underruns", "real_time_chunking", "episode_revision")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENT_FIELD_NUMBER: _ClassVar[int]
    NUM_UNDERRUNS_FIELD_NUMBER: _ClassVar[int]
    REAL_TIME_CHUNKING_FIELD_NUMBER: _ClassVar[int]
    EPISODE_REVISION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    revision: str
    robot_id: str
    episode_id: str
    request_id: str
    observation: Observation
    history: History
    seed: int
    num_inference_steps: int
    embodiment: str
    num_underruns: int
    real_time_chunking: RealTimeChunking
    episode_revision: str
    def __init__(self, policy: _Optional[str] = ..., revision: _Optional[str] = ..., robot_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., request_id: _Optional[str] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., history: _Optional[_Union[History, _Mapping]] = ..., seed: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., embodiment: _Optional[str] = ..., num_underruns: _Optional[int] = ..., real_time_chunking: _Optional[_Union[RealTimeChunking, _Mapping]] = ..., episode_revision: _Optional[str] = ...) -> None: ...

class PredictChunkResponse(_message.Message):
    __slots__ = ("robot_id", "episode_id", "request_id", "capture_time", "actions", "revision", "seed", "timing", "real_time_chunking_method", "schema_digest")
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    REAL_TIME_CHUNKING_METHOD_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    robot_id: str
    episode_id: str
    request_id: str
    capture_time: _duration_pb2.Duration
    actions: Tensor
    revision: str
    seed: int
    timing: Timing
    real_time_chunking_method: RealTimeChunking.Method
    schema_digest: str
    def __init__(self, robot_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., request_id: _Optional[str] = ..., capture_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., actions: _Optional[_Union[Tensor, _Mapping]] = ..., revision: _Optional[str] = ..., seed: _Optional[int] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., real_time_chunking_method: _Optional[_Union[RealTimeChunking.Method, str]] = ..., schema_digest: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("decode", "queue", "inference", "total")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    decode: _duration_pb2.Duration
    queue: _duration_pb2.Duration
    inference: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., inference: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StreamChunksRequest(_message.Message):
    __slots__ = ("request", "timeout")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    request: PredictChunkRequest
    timeout: _duration_pb2.Duration
    def __init__(self, request: _Optional[_Union[PredictChunkRequest, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StreamChunksResponse(_message.Message):
    __slots__ = ("chunk", "error")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    chunk: PredictChunkResponse
    error: RequestError
    def __init__(self, chunk: _Optional[_Union[PredictChunkResponse, _Mapping]] = ..., error: _Optional[_Union[RequestError, _Mapping]] = ...) -> None: ...

class RequestError(_message.Message):
    __slots__ = ("robot_id", "episode_id", "request_id", "code", "message", "field", "retry_delay", "reason")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[RequestError.Reason]
        REASON_INVALID: _ClassVar[RequestError.Reason]
        REASON_UNKNOWN_POLICY: _ClassVar[RequestError.Reason]
        REASON_UNKNOWN_REVISION: _ClassVar[RequestError.Reason]
        REASON_EXPIRED: _ClassVar[RequestError.Reason]
        REASON_SUPERSEDED: _ClassVar[RequestError.Reason]
        REASON_OVERLOADED: _ClassVar[RequestError.Reason]
        REASON_DRAINING: _ClassVar[RequestError.Reason]
        REASON_NOT_READY: _ClassVar[RequestError.Reason]
        REASON_UNAVAILABLE: _ClassVar[RequestError.Reason]
        REASON_OUTPUT_VIOLATION: _ClassVar[RequestError.Reason]
        REASON_UNAUTHENTICATED: _ClassVar[RequestError.Reason]
        REASON_PERMISSION_DENIED: _ClassVar[RequestError.Reason]
        REASON_FAILED: _ClassVar[RequestError.Reason]
    REASON_UNSPECIFIED: RequestError.Reason
    REASON_INVALID: RequestError.Reason
    REASON_UNKNOWN_POLICY: RequestError.Reason
    REASON_UNKNOWN_REVISION: RequestError.Reason
    REASON_EXPIRED: RequestError.Reason
    REASON_SUPERSEDED: RequestError.Reason
    REASON_OVERLOADED: RequestError.Reason
    REASON_DRAINING: RequestError.Reason
    REASON_NOT_READY: RequestError.Reason
    REASON_UNAVAILABLE: RequestError.Reason
    REASON_OUTPUT_VIOLATION: RequestError.Reason
    REASON_UNAUTHENTICATED: RequestError.Reason
    REASON_PERMISSION_DENIED: RequestError.Reason
    REASON_FAILED: RequestError.Reason
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    robot_id: str
    episode_id: str
    request_id: str
    code: int
    message: str
    field: str
    retry_delay: _duration_pb2.Duration
    reason: RequestError.Reason
    def __init__(self, robot_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., request_id: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[_Union[RequestError.Reason, str]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    def __init__(self, policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "revision", "embodiments", "history_steps", "action_horizon", "execution_horizon", "num_inference_steps", "max_inference_steps", "schema_digest", "variant", "real_time_chunking_methods", "max_inference_delay")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_STEPS_FIELD_NUMBER: _ClassVar[int]
    ACTION_HORIZON_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_HORIZON_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    REAL_TIME_CHUNKING_METHODS_FIELD_NUMBER: _ClassVar[int]
    MAX_INFERENCE_DELAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    embodiments: _containers.RepeatedCompositeFieldContainer[Embodiment]
    history_steps: int
    action_horizon: int
    execution_horizon: int
    num_inference_steps: int
    max_inference_steps: int
    schema_digest: str
    variant: str
    real_time_chunking_methods: _containers.RepeatedScalarFieldContainer[RealTimeChunking.Method]
    max_inference_delay: int
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., embodiments: _Optional[_Iterable[_Union[Embodiment, _Mapping]]] = ..., history_steps: _Optional[int] = ..., action_horizon: _Optional[int] = ..., execution_horizon: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., max_inference_steps: _Optional[int] = ..., schema_digest: _Optional[str] = ..., variant: _Optional[str] = ..., real_time_chunking_methods: _Optional[_Iterable[_Union[RealTimeChunking.Method, str]]] = ..., max_inference_delay: _Optional[int] = ...) -> None: ...

class Embodiment(_message.Message):
    __slots__ = ("name", "cameras", "state", "action", "control_rate_hz")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    name: str
    cameras: _containers.RepeatedCompositeFieldContainer[Camera]
    state: _containers.RepeatedCompositeFieldContainer[Group]
    action: _containers.RepeatedCompositeFieldContainer[Group]
    control_rate_hz: float
    def __init__(self, name: _Optional[str] = ..., cameras: _Optional[_Iterable[_Union[Camera, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., action: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., control_rate_hz: _Optional[float] = ...) -> None: ...

class Camera(_message.Message):
    __slots__ = ("name", "height", "width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("name", "dim", "unit", "lower_limit", "upper_limit", "kind", "representation", "step_limit")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Group.Kind]
        KIND_JOINT_POSITION: _ClassVar[Group.Kind]
        KIND_JOINT_VELOCITY: _ClassVar[Group.Kind]
        KIND_END_EFFECTOR_POSITION: _ClassVar[Group.Kind]
        KIND_END_EFFECTOR_ROTATION: _ClassVar[Group.Kind]
        KIND_GRIPPER: _ClassVar[Group.Kind]
        KIND_BASE: _ClassVar[Group.Kind]
        KIND_OTHER: _ClassVar[Group.Kind]
    KIND_UNSPECIFIED: Group.Kind
    KIND_JOINT_POSITION: Group.Kind
    KIND_JOINT_VELOCITY: Group.Kind
    KIND_END_EFFECTOR_POSITION: Group.Kind
    KIND_END_EFFECTOR_ROTATION: Group.Kind
    KIND_GRIPPER: Group.Kind
    KIND_BASE: Group.Kind
    KIND_OTHER: Group.Kind
    class Representation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REPRESENTATION_UNSPECIFIED: _ClassVar[Group.Representation]
        REPRESENTATION_ABSOLUTE: _ClassVar[Group.Representation]
        REPRESENTATION_DELTA: _ClassVar[Group.Representation]
    REPRESENTATION_UNSPECIFIED: Group.Representation
    REPRESENTATION_ABSOLUTE: Group.Representation
    REPRESENTATION_DELTA: Group.Representation
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LOWER_LIMIT_FIELD_NUMBER: _ClassVar[int]
    UPPER_LIMIT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REPRESENTATION_FIELD_NUMBER: _ClassVar[int]
    STEP_LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    unit: str
    lower_limit: _containers.RepeatedScalarFieldContainer[float]
    upper_limit: _containers.RepeatedScalarFieldContainer[float]
    kind: Group.Kind
    representation: Group.Representation
    step_limit: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., unit: _Optional[str] = ..., lower_limit: _Optional[_Iterable[float]] = ..., upper_limit: _Optional[_Iterable[float]] = ..., kind: _Optional[_Union[Group.Kind, str]] = ..., representation: _Optional[_Union[Group.Representation, str]] = ..., step_limit: _Optional[_Iterable[float]] = ...) -> None: ...
