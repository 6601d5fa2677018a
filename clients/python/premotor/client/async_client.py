"""The asyncio client.

Owns one grpc.aio channel to one gateway. Encoding runs in a thread, so that a large frame does not hold the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from premotor.client.async_stream import AsyncChunkStream
from premotor.client.channel import CHANNEL_OPTIONS, DEFAULT_STREAM_TIMEOUT_S, DEFAULT_TIMEOUT_S, Deadline
from premotor.client.chunks import Chunk, build_request, read_response
from premotor.client.description import PolicyDescription, read_description
from premotor.client.episode_revisions import EpisodeRevisions
from premotor.client.errors import ClosedError, error_from_call
from premotor.client.history import HistoryBuffer
from premotor.client.identity import TlsOptions, token_metadata
from premotor.client.images import ImageEncoding
from premotor.client.real_time_chunking import RealTimeChunking
from premotor.client.trace_context import trace_metadata
from premotor.v1 import policy_pb2, policy_pb2_grpc


class AsyncPolicyClient:
    """Asks a gateway for action chunks. Belongs to the event loop it was made in; its calls may run concurrently.

    Raises from every call what PolicyClient raises.
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

        Raises RuntimeError outside a running event loop.
        """
        asyncio.get_running_loop()
        Deadline(timeout_s)
        self._timeout_s = timeout_s
        self._metadata = token_metadata(token, address, tls=tls, allow_token_without_tls=allow_token_without_tls)
        if tls is not None:
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._descriptions: dict[str, PolicyDescription] = {}
        self._episodes = EpisodeRevisions()
        self._closed = False

    async def get_policy(self, name: str, *, timeout_s: float | None = None) -> PolicyDescription:
        """Asks what a policy expects and produces; later chunks of any revision are held to the answer."""
        request = policy_pb2.GetPolicyRequest(policy=name)
        response = await self._call(self._stub.GetPolicy, request, self._deadline(timeout_s))
        description = read_description(response.policy)
        self._descriptions[name] = description
        return description

    async def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyDescription, ...]:
        """Every served policy, ordered by name."""
        deadline = self._deadline(timeout_s)
        response = await self._call(self._stub.ListPolicies, policy_pb2.ListPoliciesRequest(), deadline)
        return tuple(read_description(policy) for policy in response.policies)

    async def history_buffer(
        self, policy: str, embodiment: str = "", *, timeout_s: float | None = None
    ) -> HistoryBuffer:
        """An empty history of the length and widths that a policy reads; asks the gateway for them."""
        description = await self.get_policy(policy, timeout_s=timeout_s)
        body = description.embodiment(embodiment)
        return HistoryBuffer(description.history_steps, body.state_dim, body.action_dim)

    async def predict_chunk(
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
        """As PolicyClient.predict_chunk. The arrays and the history must not change until it returns."""
        deadline = self._deadline(timeout_s)
        request = await asyncio.to_thread(
            build_request,
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
        response = await self._call(self._stub.PredictChunk, request, deadline, request_id=request.request_id)
        chunk = read_response(
            request,
            response,
            description=self._descriptions.get(policy),
            round_trip_s=time.perf_counter() - started_s,
        )
        self._episodes.note(request, chunk.revision)
        return chunk

    def stream(self, *, timeout_s: float = DEFAULT_STREAM_TIMEOUT_S) -> AsyncChunkStream:
        """One bidirectional stream, to be used in an `async with` block; it ends after `timeout_s`."""
        remaining_s = Deadline(timeout_s).require_time()
        self._require_open()
        return AsyncChunkStream(
            lambda: self._stub.StreamChunks(timeout=remaining_s, metadata=(*self._metadata, *trace_metadata())),
            descriptions=self._descriptions,
            episodes=self._episodes,
            timeout_s=self._timeout_s,
            client_is_closed=lambda: self._closed,
        )

    async def close(self) -> None:
        """Ends every call in flight. Closing twice is harmless."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> AsyncPolicyClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    async def _call(self, method: Callable[..., Any], request: Any, deadline: Deadline, *, request_id: str = "") -> Any:
        self._require_open()
        timeout_s = deadline.require_time(request_id=request_id)
        call = method(request, timeout=timeout_s, metadata=(*self._metadata, *trace_metadata()))
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if self._closed:
                raise ClosedError("the client was closed during the call", request_id=request_id) from error
            raise error_from_call(error, request_id=request_id) from None
        except asyncio.CancelledError:
            # Closing the channel cancels its calls, and grpc.aio then raises as if this task had been cancelled.
            if self._closed and call.cancelled():
                raise ClosedError("the client was closed during the call", request_id=request_id) from None
            raise

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the client is closed")
