"""The FastAPI surface for operators and monitors. Imports the wire, never torch, the policy or training."""

from service.admin.app import create_admin_app

__all__ = ["create_admin_app"]
