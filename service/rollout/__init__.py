"""Carrying out what the registry says: loading and unloading here, and the operations that change it.

Imports no model code.
"""

from service.rollout.follower import Follower, FollowerSettings
from service.rollout.held import LoadingBackend, LoadingSettings
from service.rollout.lease import Fence, LeaseSettings
from service.rollout.operations import Rollout
from service.rollout.settings import RolloutSettings

__all__ = [
    "Fence",
    "Follower",
    "FollowerSettings",
    "LeaseSettings",
    "LoadingBackend",
    "LoadingSettings",
    "Rollout",
    "RolloutSettings",
]
