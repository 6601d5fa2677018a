"""Carrying out what the registry says: loading and unloading here, and the operations that change it.

Imports no model code.
"""

from service.rollout.follower import Follower, FollowerSettings, LoadingBackend
from service.rollout.lease import Fence, LeaseSettings
from service.rollout.operations import Rollout, RolloutSettings

__all__ = [
    "Fence",
    "Follower",
    "FollowerSettings",
    "LeaseSettings",
    "LoadingBackend",
    "Rollout",
    "RolloutSettings",
]
