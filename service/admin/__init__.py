"""The FastAPI surface for operators and monitors. Imports the wire, never torch, the policy or training."""

from service.admin.app import create_admin_app
from service.admin.dependencies import FleetParts

__all__ = ["FleetParts", "create_admin_app"]
