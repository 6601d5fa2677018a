"""Who asks a gateway: a token and certificates, by the flags that `python -m premotor.client` has.

Owns the reading of their files. Does not own what a client may send unencrypted (premotor.client).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from premotor.client import PolicyClient, TlsOptions


@dataclass(frozen=True, kw_only=True)
class GatewayIdentity:
    """Nothing of it is needed on a machine's own loopback."""

    token: str = field(default="", repr=False)
    tls: TlsOptions | None = None
    allow_token_without_tls: bool = False

    def client(self, address: str) -> PolicyClient:
        """Raises ValueError for what may not be sent to `address` like this."""
        return PolicyClient(
            address, token=self.token, tls=self.tls, allow_token_without_tls=self.allow_token_without_tls
        )


def read_identity(options: argparse.Namespace) -> GatewayIdentity:
    """Raises ValueError for a file that cannot be read or does not do, and for what may not be sent like this."""
    files = options.tls_ca, options.tls_cert, options.tls_key
    token = _content(options.token_file).decode(errors="replace").strip() if options.token_file else ""
    if options.token_file and not token:
        raise ValueError(f"{options.token_file} is empty, expected a token")
    if not options.address and (token or options.tls or any(files)):
        raise ValueError("a token or certificates came without --address, the gateway to show them to")
    tls = None
    if options.tls or any(files):
        ca, certificate, key = (_content(path) if path else None for path in files)
        tls = TlsOptions(root_certificates=ca, certificate=certificate, key=key)
    identity = GatewayIdentity(token=token, tls=tls, allow_token_without_tls=options.allow_token_without_tls)
    if options.address:
        identity.client(options.address).close()
    return identity


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
