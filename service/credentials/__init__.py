"""Who may ask for what: tokens, their scopes and caps, TLS, and whether the service may listen where it is told to.

Knows no database, no gateway and no HTTP, and imports no model code.
"""

from service.credentials.access import Access, Caller, Credentials
from service.credentials.cache import TokenCache
from service.credentials.refusals import Surface
from service.credentials.tls import ServerTls, ServingTls, TlsFiles, read_tls
from service.credentials.token import Caps, Scope, TokenRecord, TokenSpec

__all__ = [
    "Access",
    "Caller",
    "Caps",
    "Credentials",
    "Scope",
    "ServerTls",
    "ServingTls",
    "Surface",
    "TlsFiles",
    "TokenCache",
    "TokenRecord",
    "TokenSpec",
    "read_tls",
]
