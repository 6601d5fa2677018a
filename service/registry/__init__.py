"""What the fleet serves and who changed it: policies, revisions and their states, routes, operations, the audit log.

Owns the database. Knows no gateway, no Triton and no HTTP, and imports no model code.
"""

from service.registry.database import RegistryUnavailableError, WrongRegistryError, open_database
from service.registry.records import (
    AuditEntry,
    Fleet,
    Gateway,
    Guard,
    Heard,
    Operation,
    OperationState,
    Placement,
    PolicyRecord,
    RevisionRecord,
    Route,
    Shadow,
    Tally,
)
from service.registry.registry import Registry
from service.registry.states import RevisionState

__all__ = [
    "AuditEntry",
    "Fleet",
    "Gateway",
    "Guard",
    "Heard",
    "Operation",
    "OperationState",
    "Placement",
    "PolicyRecord",
    "Registry",
    "RegistryUnavailableError",
    "RevisionRecord",
    "RevisionState",
    "Route",
    "Shadow",
    "Tally",
    "WrongRegistryError",
    "open_database",
]
