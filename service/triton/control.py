"""Loading and unloading models in one tritonserver, over KServe v2 in gRPC.

Not over HTTP, on which chunks are asked for: a thread of Triton's HTTP service answers many connections, and a load
keeps it until it has ended, and with it every robot whose connection happens to share it: 9 s, measured. Owns nothing
else.
"""

from __future__ import annotations

import grpc

from service.backend import BackendDeadlineError, BackendError, BackendFailedError, BackendUnavailableError

_SERVICE = "/inference.GRPCInferenceService"
# RepositoryModelLoadRequest and RepositoryModelUnloadRequest alike: field 2 is the model's name, a string.
_MODEL_NAME = b"\x12"
_MAX_NAME_BYTES = 127  # its length is one byte then
_RESTRICTED_PREFIX = "triton-grpc-protocol-"


class LoadRefusedError(BackendError):
    """Triton could not load a model; the message is Triton's own account."""


class TritonControl:
    """`address` is "host:port" of its gRPC service, or "unix:path". A call has a connection of its own: few come."""

    def __init__(self, address: str, *, key: str = "") -> None:
        """`key` is "KEY=VALUE" as in --grpc-restricted-protocol=model-repository:KEY=VALUE; empty for none."""
        self._address = address
        name, _, value = key.partition("=")
        self._metadata = ((_RESTRICTED_PREFIX + name, value),) if key else ()

    async def load(self, model: str, *, timeout_s: float) -> None:
        """Returns once the model is initialised. Raises LoadRefusedError, else another BackendError."""
        await self._call("RepositoryModelLoad", model, timeout_s)

    async def unload(self, model: str, *, timeout_s: float) -> None:
        """Returns at once; Triton finishes what is in flight. Raises a BackendError."""
        await self._call("RepositoryModelUnload", model, timeout_s)

    async def _call(self, method: str, model: str, timeout_s: float) -> None:
        name = model.encode()
        assert len(name) <= _MAX_NAME_BYTES
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call = channel.unary_unary(f"{_SERVICE}/{method}")
            try:
                await call(_MODEL_NAME + bytes([len(name)]) + name, timeout=timeout_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                raise _translated(error, timeout_s) from None


def _translated(error: grpc.aio.AioRpcError, timeout_s: float) -> BackendError:
    message = f"{error.code().name}: {error.details()}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return BackendDeadlineError(f"Triton did not answer within {timeout_s:.3f} s")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return BackendUnavailableError(message)
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN):
        return LoadRefusedError(str(error.details()))
    return BackendFailedError(message)
