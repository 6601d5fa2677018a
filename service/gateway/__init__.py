"""The gRPC process robots talk to. Imports the wire, never torch, the policy or training."""

from service.gateway.limits import GatewayLimits
from service.gateway.server import GatewayServer

__all__ = ["GatewayLimits", "GatewayServer"]
