"""Who calls, on gRPC: asked before a byte of a message is read, and again for every request.

Owns the scopes of each method, where the credential is found, the refusal of a whole call and when a request takes its
place among those that its token may have in flight: before its message is read, which may be 64 MiB. Does not own what
a credential is worth (credentials/).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import grpc

from premotor.v1 import policy_pb2
from service.credentials import Access, Caller, Scope
from service.errors import OverloadedError, ServiceError
from service.gateway.answers import Answer, ChunkAnswerer
from service.gateway.refusal import abort, refuse

_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
# It takes its place among a token's streams by itself, and counts what it refuses.
_STREAM_CHUNKS = f"/{_SERVICE}/StreamChunks"
_HEADER = "authorization"
# Balancers and watchdogs ask it, and hold no token.
_OPEN_PREFIX = "/grpc.health.v1.Health/"
# One of these is needed; for a method that is not listed, such as reflection's, any token will do.
METHOD_SCOPES: Mapping[str, frozenset[Scope]] = {
    f"/{_SERVICE}/PredictChunk": frozenset({Scope.INFER}),
    _STREAM_CHUNKS: frozenset({Scope.INFER}),
    f"/{_SERVICE}/GetPolicy": frozenset({Scope.INFER, Scope.OBSERVE}),
    f"/{_SERVICE}/ListPolicies": frozenset({Scope.INFER, Scope.OBSERVE}),
}
_ANY_SCOPE = frozenset(Scope)

_END = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]  # the stubs lack it
# Who has a place for the request that is being answered.
_placed_caller: ContextVar[Caller] = ContextVar("placed_caller")

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, ...]:
    """All values of the header: more than one is as wrong as none."""
    return tuple(value for key, value in metadata or () if key == _HEADER and isinstance(value, str))


def caller_of_call() -> Caller:
    """Who made the call of one message that is being answered, as it was found before the message was read."""
    return _placed_caller.get()


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call reach its method when the caller may use that method at all, and has a place for the request."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        method: str = handler_call_details.method
        if method.startswith(_OPEN_PREFIX):
            return await continuation(handler_call_details)
        try:
            caller = self._access.caller(authorization_of(handler_call_details.invocation_metadata))
            self._access.require(caller, METHOD_SCOPES.get(method, _ANY_SCOPE))
        except ServiceError as error:
            return _refusing(error)
        handler = await continuation(handler_call_details)
        if handler is None or method == _STREAM_CHUNKS:
            return handler
        return self._streamed(handler, caller) if handler.request_streaming else self._placed(handler, caller)

    def _placed(self, handler: grpc.RpcMethodHandler, caller: Caller) -> grpc.RpcMethodHandler:
        """The same method, whose message is read once the caller has a place, which is kept until the call's end."""
        method, read = handler.unary_unary, handler.request_deserializer
        assert method is not None and read is not None

        async def answer(_messages: AsyncIterator[Any], context: Any) -> Any:
            try:
                with self._access.request(caller):
                    _placed_caller.set(caller)
                    message = await context.read()
                    # A caller that sends none has said nothing.
                    request = read(b"") if message is _END else message
                    return await method(request, context)
            except OverloadedError as error:
                await abort(context, refuse(error, None))

        # As a stream's it is called before the message has come; on the wire both are one.
        return grpc.stream_unary_rpc_method_handler(answer, read, handler.response_serializer)

    def _streamed(self, handler: grpc.RpcMethodHandler, caller: Caller) -> grpc.RpcMethodHandler:
        """The same method, which is one of the caller's streams while it is open."""
        # The stubs know the one of threads alone.
        method: Any = handler.stream_stream

        async def answer(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
            try:
                with self._access.stream(caller):
                    async for message in method(messages, context):
                        await context.write(message)
            except OverloadedError as error:
                await abort(context, refuse(error, None))

        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


class AuthorizedAnswerer:
    """The answerer as one caller may use it: each request of a stream is judged by the tokens of its own moment."""

    def __init__(
        self, answerer: ChunkAnswerer, access: Access, caller: Callable[[], Caller], *, in_stream: bool
    ) -> None:
        """`caller` raises AuthenticationError. `in_stream`: each request takes a place; a call of its own has one."""
        self._answerer = answerer
        self._access = access
        self._caller = caller
        self._in_stream = in_stream
        self.draining = answerer.draining
        self.refuse = answerer.refuse

    async def answer(
        self, request: policy_pb2.PredictChunkRequest | None, *, timeout_s: float | None, num_bytes: int
    ) -> Answer:
        """As ChunkAnswerer.answer."""
        try:
            caller = self._caller()
            self._access.require(caller, (Scope.INFER,), policy=request.policy if request is not None else "")
            with self._access.request(caller) if self._in_stream else nullcontext():
                holder = caller.token.token_id if caller.token is not None else ""
                return await self._answerer.answer(request, timeout_s=timeout_s, caller=holder, num_bytes=num_bytes)
        except ServiceError as error:
            return self._answerer.refuse(error, request)


def _refusing(error: ServiceError) -> grpc.RpcMethodHandler:
    """A handler that answers any call with the error. As a stream's it does not wait for the message, of any size."""

    async def refuse_call(_messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await abort(context, refuse(error, None))

    return grpc.stream_stream_rpc_method_handler(refuse_call)
