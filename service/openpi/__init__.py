"""openpi's websocket wire, for robots that speak it already. Imports the wire, never torch, the policy or training."""

from service.openpi.authentication import Authenticator, TokenAuthenticator
from service.openpi.limits import OpenpiLimits
from service.openpi.observation_map import ObservationMap, ObservationMapError, read_observation_map
from service.openpi.server import OpenpiServer

__all__ = [
    "Authenticator",
    "ObservationMap",
    "ObservationMapError",
    "OpenpiLimits",
    "OpenpiServer",
    "TokenAuthenticator",
    "read_observation_map",
]
