"""The blocking client.

Owns one channel to one gateway. Every call has a deadline and is sent at most once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from premotor.client.channel import CHANNEL_OPTIONS, DEFAULT_STREAM_TIMEOUT_S, DEFAULT_TIMEOUT_S, Deadline
from premotor.client.chunks import Chunk, build_request, read_response
from premotor.client.description import PolicyDescription, read_description
from premotor.client.episode_revisions import EpisodeRevisions
from premotor.client.errors import ClosedError, error_from_call
from premotor.client.history import HistoryBuffer
from premotor.client.identity import TlsOptions, token_metadata
from premotor.client.images import ImageEncoding
from premotor.client.real_time_chunking import RealTimeChunking
from premotor.client.sync_stream import ChunkStream
from premotor.client.trace_context import trace_metadata
from premotor.v1 import policy_pb2, policy_pb2_grpc


class PolicyClient:
    """Asks a gateway for action chunks. Thread-safe; use one per process after a fork, and close it.

    Raises from every call: FixRequestError, RetryableError, DeadlineExceededError, ObservationSupersededError,
    ServerFailureError (OutputViolationError among them), SchemaChangedError, ProtocolError or ClosedError, all of them
    PolicyError.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        token: str = "",
        tls: TlsOptions | None = None,
        allow_token_without_tls: bool = False,
    ) -> None:
        """`address` is host:port. `timeout_s` bounds every call that names no timeout of its own.

        `token` is sent with every call. Raises ValueError when it would leave this machine without `tls`, unless that
        is allowed.
        """
        Deadline(timeout_s)
        self._timeout_s = timeout_s
        self._metadata = token_metadata(token, address, tls=tls, allow_token_without_tls=allow_token_without_tls)
        if tls is not None:
            self._channel = grpc.secure_channel(address, tls.credentials(), options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._descriptions: dict[str, PolicyDescription] = {}
        self._episodes = EpisodeRevisions()
        self._closed = False

    def get_policy(self, name: str, *, timeout_s: float | None = None) -> PolicyDescription:
        """Asks what a policy expects and produces; later chunks of any revision are held to the answer."""
        request = policy_pb2.GetPolicyRequest(policy=name)
        response = self._call(self._stub.GetPolicy, request, self._deadline(timeout_s))
        description = read_description(response.policy)
        self._descriptions[name] = description
        return description

    def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyDescription, ...]:
        """Every served policy, ordered by name."""
        response = self._call(self._stub.ListPolicies, policy_pb2.ListPoliciesRequest(), self._deadline(timeout_s))
        return tuple(read_description(policy) for policy in response.policies)

    def history_buffer(self, policy: str, embodiment: str = "", *, timeout_s: float | None = None) -> HistoryBuffer:
        """An empty history of the length and widths that a policy reads; asks the gateway for them."""
        description = self.get_policy(policy, timeout_s=timeout_s)
        body = description.embodiment(embodiment)
        return HistoryBuffer(description.history_steps, body.state_dim, body.action_dim)

    def predict_chunk(
        self,
        *,
        policy: str,
        robot_id: str,
        episode_id: str,
        images: Mapping[str, np.ndarray | bytes],
        state: np.ndarray,
        instruction: str,
        embodiment: str = "",
        history: HistoryBuffer | None = None,
        capture_time_s: float | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        num_underruns: int | None = None,
        real_time_chunking: RealTimeChunking | None = None,
        revision: str = "",
        episode_revision: str = "",
        image_encoding: ImageEncoding = "jpeg",
        timeout_s: float | None = None,
    ) -> Chunk:
        """The next actions for one observation.

        `images` maps camera name to RGB pixels, uint8 [height, width, 3], or to the bytes of a JPEG or PNG file; pixels
        are sent as `image_encoding` says. `state` is [state_dim] in the embodiment's units. `capture_time_s` is on the
        caller's monotonic clock and comes back in the chunk. `num_underruns` says how often the robot had no action to
        play since its last request, for the service's metrics. `real_time_chunking` asks for a chunk that continues the
        one being played. `revision` pins one. An episode stays on the revision it began on, also where another gateway
        answers: this client says which that was, and `episode_revision` says it where another client got the last
        chunk. Encoding counts against `timeout_s`.
        """
        deadline = self._deadline(timeout_s)
        request = build_request(
            policy=policy,
            robot_id=robot_id,
            episode_id=episode_id,
            images=images,
            state=state,
            instruction=instruction,
            embodiment=embodiment,
            history=history,
            capture_time_s=capture_time_s,
            seed=seed,
            num_inference_steps=num_inference_steps,
            num_underruns=num_underruns,
            real_time_chunking=real_time_chunking,
            revision=revision,
            episode_revision=episode_revision,
            image_encoding=image_encoding,
        )
        self._episodes.tell(request)
        started_s = time.perf_counter()
        response = self._call(self._stub.PredictChunk, request, deadline, request_id=request.request_id)
        chunk = read_response(
            request,
            response,
            description=self._descriptions.get(policy),
            round_trip_s=time.perf_counter() - started_s,
        )
        self._episodes.note(request, chunk.revision)
        return chunk

    def stream(self, *, timeout_s: float = DEFAULT_STREAM_TIMEOUT_S) -> ChunkStream:
        """One bidirectional stream for many requests, to be used in a `with` block; it ends after `timeout_s`."""
        remaining_s = Deadline(timeout_s).require_time()
        self._require_open()
        return ChunkStream(
            lambda requests: self._stub.StreamChunks(
                requests, timeout=remaining_s, metadata=(*self._metadata, *trace_metadata())
            ),
            descriptions=self._descriptions,
            episodes=self._episodes,
            timeout_s=self._timeout_s,
            client_is_closed=lambda: self._closed,
        )

    def close(self) -> None:
        """Ends every call in flight. Closing twice is harmless."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _call(self, method: Callable[..., Any], request: Any, deadline: Deadline, *, request_id: str = "") -> Any:
        self._require_open()
        try:
            timeout_s = deadline.require_time(request_id=request_id)
            return method(request, timeout=timeout_s, metadata=(*self._metadata, *trace_metadata()))
        except grpc.RpcError as error:
            if self._closed:
                raise ClosedError("the client was closed during the call", request_id=request_id) from error
            raise error_from_call(error, request_id=request_id) from None
        except ValueError as error:
            # gRPC's answer where another thread closed the channel since the check above.
            if self._closed:
                raise ClosedError("the client is closed", request_id=request_id) from error
            raise

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the client is closed")
