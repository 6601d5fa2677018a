"""Who calls, on gRPC: asked before a byte of a message is read, and again for every request.

Owns the scopes of each method, where the credential is found and the refusal of a whole call. Does not own what a
credential is worth (credentials/).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from premotor.v1 import policy_pb2
from service.credentials import Access, Scope
from service.errors import ServiceError
from service.gateway.answers import Answer, ChunkAnswerer
from service.gateway.refusal import abort, refuse

_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_HEADER = "authorization"
# Balancers and watchdogs ask it, and hold no token.
_OPEN_PREFIX = "/grpc.health.v1.Health/"
# One of these is needed; for a method that is not listed, such as reflection's, any token will do.
METHOD_SCOPES: Mapping[str, frozenset[Scope]] = {
    f"/{_SERVICE}/PredictChunk": frozenset({Scope.INFER}),
    f"/{_SERVICE}/StreamChunks": frozenset({Scope.INFER}),
    f"/{_SERVICE}/GetPolicy": frozenset({Scope.INFER, Scope.OBSERVE}),
    f"/{_SERVICE}/ListPolicies": frozenset({Scope.INFER, Scope.OBSERVE}),
}
_ANY_SCOPE = frozenset(Scope)

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, ...]:
    """All values of the header: more than one is as wrong as none."""
    return tuple(value for key, value in metadata or () if key == _HEADER and isinstance(value, str))


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call reach its method when the caller may use that method at all."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        method: str = handler_call_details.method
        if not method.startswith(_OPEN_PREFIX):
            try:
                caller = self._access.caller(authorization_of(handler_call_details.invocation_metadata))
                self._access.require(caller, METHOD_SCOPES.get(method, _ANY_SCOPE))
            except ServiceError as error:
                return _refusing(error)
        return await continuation(handler_call_details)


class AuthorizedAnswerer:
    """The answerer as one caller may use it: each request is judged by the tokens of its own moment."""

    def __init__(self, answerer: ChunkAnswerer, access: Access, authorization: tuple[str, ...]) -> None:
        self._answerer = answerer
        self._access = access
        self._authorization = authorization
        self.draining = answerer.draining
        self.refuse = answerer.refuse

    async def answer(
        self, request: policy_pb2.PredictChunkRequest | None, *, timeout_s: float | None, num_bytes: int
    ) -> Answer:
        """As ChunkAnswerer.answer."""
        try:
            caller = self._access.caller(self._authorization)
            self._access.require(caller, (Scope.INFER,), policy=request.policy if request is not None else "")
            with self._access.request(caller):
                holder = caller.token.token_id if caller.token is not None else ""
                return await self._answerer.answer(request, timeout_s=timeout_s, caller=holder, num_bytes=num_bytes)
        except ServiceError as error:
            return self._answerer.refuse(error, request)


def _refusing(error: ServiceError) -> grpc.RpcMethodHandler:
    """A handler that answers any call with the error. As a stream's it does not wait for the message, of any size."""

    async def refuse_call(_messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await abort(context, refuse(error, None))

    return grpc.stream_stream_rpc_method_handler(refuse_call)
