"""What a robot installs: typed calls to a premotor gateway, and the robot's own history.

Needs grpcio, protobuf and numpy, nothing else; JPEG encoding is the extra `premotor[images]`.
"""

from premotor.client.async_client import AsyncPolicyClient
from premotor.client.async_stream import AsyncChunkStream
from premotor.client.back_off import BackOff
from premotor.client.chunks import Chunk, ServerTiming
from premotor.client.control_loop import EpisodeReport
from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.episode_recorder import EpisodeRecorder
from premotor.client.errors import (
    ClosedError,
    DeadlineExceededError,
    FixRequestError,
    ObservationSupersededError,
    OutputViolationError,
    PolicyError,
    ProtocolError,
    RetryableError,
    SchemaChangedError,
    ServerFailureError,
)
from premotor.client.history import HistoryBuffer, HistoryWindow
from premotor.client.hold import LastPosition, ZeroVelocity, unmeasured_at_zero
from premotor.client.identity import TlsOptions
from premotor.client.playback import ActionBuffer, PlaybackCounts, RealTimeChunkingRule, Replace, TemporalEnsemble
from premotor.client.player import ChunkPlayer
from premotor.client.real_time_chunking import RealTimeChunking, RealTimeChunkingMethod
from premotor.client.recording import Recording, RecordingError
from premotor.client.robot import Robot, RobotObservation
from premotor.client.sync_client import PolicyClient
from premotor.client.sync_stream import ChunkStream
from premotor.client.synthetic_robot import SyntheticRobot

__all__ = [
    "ActionBuffer",
    "AsyncChunkStream",
    "AsyncPolicyClient",
    "BackOff",
    "Camera",
    "Chunk",
    "ChunkPlayer",
    "ChunkStream",
    "ClosedError",
    "DeadlineExceededError",
    "Embodiment",
    "EpisodeRecorder",
    "EpisodeReport",
    "FixRequestError",
    "Group",
    "HistoryBuffer",
    "HistoryWindow",
    "LastPosition",
    "ObservationSupersededError",
    "OutputViolationError",
    "PlaybackCounts",
    "PolicyClient",
    "PolicyDescription",
    "PolicyError",
    "ProtocolError",
    "RealTimeChunking",
    "RealTimeChunkingMethod",
    "RealTimeChunkingRule",
    "Recording",
    "RecordingError",
    "Replace",
    "RetryableError",
    "Robot",
    "RobotObservation",
    "SchemaChangedError",
    "ServerFailureError",
    "ServerTiming",
    "SyntheticRobot",
    "TemporalEnsemble",
    "TlsOptions",
    "ZeroVelocity",
    "unmeasured_at_zero",
]
