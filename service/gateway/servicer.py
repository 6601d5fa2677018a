"""PolicyService on gRPC: messages in, messages or a status out.

Owns the mapping of answers to gRPC calls. Does not own the answers. The handlers are listed here rather than by the
generated registration, because that turns bytes which are no message into UNKNOWN with the name of a Python class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from premotor.v1 import policy_pb2
from premotor.wire import error_metadata
from service.backend import Backend
from service.errors import InvalidRequestError, NotReadyError, ServiceError
from service.gateway.answers import ChunkAnswerer
from service.gateway.limits import GatewayLimits
from service.gateway.refusal import refuse
from service.gateway.stream import ChunkStream
from service.policies import ServedPolicies
from service.readiness import revision_ready

SERVICE_NAME = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name

_STATUS_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_Parsed = TypeVar("_Parsed", bound=Message)


class PolicyServicer:
    """The four methods of PolicyService."""

    def __init__(
        self, *, policies: ServedPolicies, backend: Backend, answerer: ChunkAnswerer, limits: GatewayLimits
    ) -> None:
        self._policies = policies
        self._backend = backend
        self._answerer = answerer
        self._limits = limits

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "PredictChunk": _unary(self.predict_chunk, policy_pb2.PredictChunkRequest),
                "StreamChunks": grpc.stream_stream_rpc_method_handler(
                    self.stream_chunks,
                    request_deserializer=_parser(policy_pb2.StreamChunksRequest),
                    response_serializer=_serialize,
                ),
                "GetPolicy": _unary(self.get_policy, policy_pb2.GetPolicyRequest),
                "ListPolicies": _unary(self.list_policies, policy_pb2.ListPoliciesRequest),
            },
        )

    async def predict_chunk(
        self, request: policy_pb2.PredictChunkRequest | None, context: grpc.aio.ServicerContext
    ) -> policy_pb2.PredictChunkResponse:
        answer = await self._answerer.answer(request, timeout_s=context.time_remaining())
        if isinstance(answer, policy_pb2.RequestError):
            await _abort(context, answer)
        return answer

    async def stream_chunks(
        self, messages: AsyncIterator[policy_pb2.StreamChunksRequest | None], context: grpc.aio.ServicerContext
    ) -> None:
        await ChunkStream(messages=messages, context=context, answerer=self._answerer, limits=self._limits).run()

    async def get_policy(
        self, request: policy_pb2.GetPolicyRequest | None, context: grpc.aio.ServicerContext
    ) -> policy_pb2.GetPolicyResponse:
        try:
            return policy_pb2.GetPolicyResponse(policy=await self._ready_policy(_required(request).policy))
        except ServiceError as error:
            await _abort(context, refuse(error, None))

    async def list_policies(
        self, request: policy_pb2.ListPoliciesRequest | None, context: grpc.aio.ServicerContext
    ) -> policy_pb2.ListPoliciesResponse:
        try:
            _required(request)
        except ServiceError as error:
            await _abort(context, refuse(error, None))
        descriptions = [self._policies.serving(policy).description for policy in self._policies]
        return policy_pb2.ListPoliciesResponse(policies=descriptions)

    async def _ready_policy(self, policy: str) -> policy_pb2.Policy:
        if not policy:
            raise InvalidRequestError("policy", "none came, it is required")
        revision = self._policies.serving(policy)
        if not await revision_ready(self._backend, revision.revision, timeout_s=self._limits.readiness_timeout_s):
            raise NotReadyError(
                f"no revision of policy {policy!r} is ready yet", retry_after_s=self._limits.unavailable_retry_s
            )
        return revision.description


def _unary(method: Callable[..., Any], message: type[Message]) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=_parser(message), response_serializer=_serialize
    )


def _parser(message: type[_Parsed]) -> Callable[[bytes], _Parsed | None]:
    """Bytes to a message, None when they are not one."""

    def parse(content: bytes) -> _Parsed | None:
        try:
            return message.FromString(content)
        except DecodeError:
            return None

    return parse


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _required(request: _Parsed | None) -> _Parsed:
    if request is None:
        raise InvalidRequestError("", "the bytes that came are not the message that this method takes")
    return request


async def _abort(context: grpc.aio.ServicerContext, error: policy_pb2.RequestError) -> NoReturn:
    await context.abort(_STATUS_BY_NUMBER[error.code], error.message, trailing_metadata=error_metadata(error))
    raise AssertionError("abort returned")
