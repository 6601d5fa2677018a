"""What a robot installs: typed calls to a premotor gateway, and the robot's own history.

Needs grpcio, protobuf and numpy, nothing else; JPEG encoding is the extra `premotor[images]`.
"""

from premotor.client.async_client import AsyncPolicyClient
from premotor.client.async_stream import AsyncChunkStream
from premotor.client.chunks import Chunk, ServerTiming
from premotor.client.description import Camera, Embodiment, Group, PolicyDescription
from premotor.client.errors import (
    ClosedError,
    DeadlineExceededError,
    FixRequestError,
    ObservationSupersededError,
    OutputViolationError,
    PolicyError,
    ProtocolError,
    RetryableError,
    ServerFailureError,
)
from premotor.client.history import HistoryBuffer, HistoryWindow
from premotor.client.identity import TlsOptions
from premotor.client.sync_client import PolicyClient
from premotor.client.sync_stream import ChunkStream

__all__ = [
    "AsyncChunkStream",
    "AsyncPolicyClient",
    "Camera",
    "Chunk",
    "ChunkStream",
    "ClosedError",
    "DeadlineExceededError",
    "Embodiment",
    "FixRequestError",
    "Group",
    "HistoryBuffer",
    "HistoryWindow",
    "ObservationSupersededError",
    "OutputViolationError",
    "PolicyClient",
    "PolicyDescription",
    "PolicyError",
    "ProtocolError",
    "RetryableError",
    "ServerFailureError",
    "ServerTiming",
    "TlsOptions",
]
