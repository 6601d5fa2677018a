"""PolicyService on gRPC: messages in, messages or a status out.

Owns the mapping of answers to gRPC calls. Does not own the answers. The handlers are listed here rather than by the
generated registration, because that turns bytes which are no message into UNKNOWN with the name of a Python class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from premotor.v1 import policy_pb2
from service.backend import Backend
from service.credentials import Access, Scope
from service.errors import InvalidRequestError, NotReadyError, OverloadedError, ServiceError
from service.gateway.answers import ChunkAnswerer
from service.gateway.authentication import AuthorizedAnswerer, authorization_of, caller_of_call
from service.gateway.limits import GatewayLimits
from service.gateway.refusal import abort, refuse
from service.gateway.stream import ChunkStream
from service.gateway.tracing import TracedAnswerer, traceparent_of
from service.observability.tracing import Tracing
from service.policies import ServedPolicies
from service.readiness import revision_ready

SERVICE_NAME = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name

_DESCRIBES = (Scope.INFER, Scope.OBSERVE)
_Parsed = TypeVar("_Parsed", bound=Message)


class PolicyServicer:
    """The four methods of PolicyService."""

    def __init__(
        self,
        *,
        policies: ServedPolicies,
        backend: Backend,
        answerer: ChunkAnswerer,
        access: Access,
        limits: GatewayLimits,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._policies = policies
        self._backend = backend
        self._answerer = answerer
        self._access = access
        self._limits = limits
        self._num_streams = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "PredictChunk": _unary(self.predict_chunk, _measuring(policy_pb2.PredictChunkRequest)),
                "StreamChunks": grpc.stream_stream_rpc_method_handler(
                    self.stream_chunks,
                    request_deserializer=_measuring(policy_pb2.StreamChunksRequest),
                    response_serializer=_serialize,
                ),
                "GetPolicy": _unary(self.get_policy, _parser(policy_pb2.GetPolicyRequest)),
                "ListPolicies": _unary(self.list_policies, _parser(policy_pb2.ListPoliciesRequest)),
            },
        )

    async def predict_chunk(
        self, received: tuple[policy_pb2.PredictChunkRequest | None, int], context: grpc.aio.ServicerContext
    ) -> policy_pb2.PredictChunkResponse:
        request, num_bytes = received
        answerer = AuthorizedAnswerer(self._answerer, self._access, caller_of_call, in_stream=False)
        answer = await self._traced(answerer, context, "PredictChunk").answer(
            request, timeout_s=context.time_remaining(), num_bytes=num_bytes
        )
        if isinstance(answer, policy_pb2.RequestError):
            await abort(context, answer)
        return answer

    async def stream_chunks(
        self,
        messages: AsyncIterator[tuple[policy_pb2.StreamChunksRequest | None, int]],
        context: grpc.aio.ServicerContext,
    ) -> None:
        with ExitStack() as held:
            try:
                check_caller = partial(self._access.caller, authorization_of(context.invocation_metadata()))
                caller = check_caller()
                self._access.require(caller, (Scope.INFER,))
                held.enter_context(self._one_stream())
                held.enter_context(self._access.stream(caller))
            except ServiceError as error:
                await abort(context, self._answerer.refuse(error, None))
            answerer = AuthorizedAnswerer(self._answerer, self._access, check_caller, in_stream=True)
            stream = ChunkStream(
                messages=messages,
                context=context,
                answerer=self._traced(answerer, context, "StreamChunks"),
                check_caller=check_caller,
                limits=self._limits,
            )
            await stream.run()

    async def get_policy(
        self, request: policy_pb2.GetPolicyRequest | None, context: grpc.aio.ServicerContext
    ) -> policy_pb2.GetPolicyResponse:
        try:
            policy = _required(request).policy
            self._access.require(caller_of_call(), _DESCRIBES, policy=policy)
            return policy_pb2.GetPolicyResponse(policy=await self._ready_policy(policy))
        except ServiceError as error:
            await abort(context, refuse(error, None))

    async def list_policies(
        self, request: policy_pb2.ListPoliciesRequest | None, context: grpc.aio.ServicerContext
    ) -> policy_pb2.ListPoliciesResponse:
        try:
            _required(request)
            caller = caller_of_call()
            self._require_started()
            seen = [policy for policy in self._policies if caller.for_policy(policy)]
            descriptions = [self._policies.serving(policy).description for policy in seen]
            return policy_pb2.ListPoliciesResponse(policies=descriptions)
        except ServiceError as error:
            await abort(context, refuse(error, None))

    def _traced(
        self, answerer: AuthorizedAnswerer, context: grpc.aio.ServicerContext, method: str
    ) -> AuthorizedAnswerer | TracedAnswerer:
        if self._tracing is None:
            return answerer
        name, traceparent = f"{SERVICE_NAME}/{method}", traceparent_of(context.invocation_metadata())
        return TracedAnswerer(answerer, self._tracing, method=name, traceparent=traceparent)

    @contextmanager
    def _one_stream(self) -> Iterator[None]:
        most = self._limits.max_streams
        if self._num_streams >= most:
            raise OverloadedError(
                f"{most} streams are open, the most that are taken", retry_after_s=self._limits.overload_retry_s
            )
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    def _require_started(self) -> None:
        """A gateway that is starting has nothing to list, which is not the same as nothing being served."""
        if not self._policies and (self._policies.names or not self._policies.is_known):
            raise NotReadyError(
                "the gateway is starting: no policy is ready yet", retry_after_s=self._limits.unavailable_retry_s
            )

    async def _ready_policy(self, policy: str) -> policy_pb2.Policy:
        if not policy:
            raise InvalidRequestError("policy", "none came, it is required")
        revision = self._policies.serving(policy)
        if not await revision_ready(self._backend, revision.revision, timeout_s=self._limits.readiness_timeout_s):
            raise NotReadyError(
                f"no revision of policy {policy!r} is ready yet", retry_after_s=self._limits.unavailable_retry_s
            )
        return revision.description


def _unary(method: Callable[..., Any], read: Callable[[bytes], Any]) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(method, request_deserializer=read, response_serializer=_serialize)


def _parser(message: type[_Parsed]) -> Callable[[bytes], _Parsed | None]:
    """Bytes to a message, None when they are not one."""

    def parse(content: bytes) -> _Parsed | None:
        try:
            return message.FromString(content)
        except DecodeError:
            return None

    return parse


def _measuring(message: type[_Parsed]) -> Callable[[bytes], tuple[_Parsed | None, int]]:
    """As `_parser`, and how many bytes came: a message does not know its size but by being written again."""
    parse = _parser(message)
    return lambda content: (parse(content), len(content))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _required(request: _Parsed | None) -> _Parsed:
    if request is None:
        raise InvalidRequestError("", "the bytes that came are not the message that this method takes")
    return request
