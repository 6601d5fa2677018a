"""Who a client is and how that is kept from others: the token it sends, and TLS.

Owns the rule that a token travels encrypted or not beyond this machine. Does not own channels or calls.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address

import grpc

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """Encrypts, and makes sure who answers. All in PEM."""

    # Who may vouch for the gateway; None trusts those that gRPC ships with.
    root_certificates: bytes | None = None
    # What this client shows of itself, where the gateway asks for it (mTLS); both or neither.
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together: one was given without the other")
        for name in ("root_certificates", "certificate"):
            pem = getattr(self, name)
            if pem is not None:
                _check_certificates(name, pem)
        if self.key is not None and b"PRIVATE KEY-----" not in self.key:
            raise ValueError("key holds no private key in PEM")

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.root_certificates, self.key, self.certificate)


def token_metadata(token: str, address: str, *, tls: TlsOptions | None, allow_token_without_tls: bool) -> Metadata:
    """What every call carries; nothing when there is no token.

    Raises ValueError for a token that cannot be one, or that anybody on the way could read.
    """
    if not token:
        return ()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("token holds blanks or characters that no token has: is it the content of the right file?")
    if tls is None and not allow_token_without_tls and not _stays_here(address):
        raise ValueError(
            f"the token would go to {address} unencrypted: give tls, or say allow_token_without_tls where the network "
            "encrypts by itself"
        )
    return (("authorization", f"Bearer {token}"),)


def _stays_here(address: str) -> bool:
    """Whether every byte to this gRPC target stays on this machine; False for what cannot be told from the name."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    return all(_is_loopback(_host(each)) for each in address.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.rpartition(":")
    return host if colon and ":" not in host else address


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _check_certificates(name: str, pem: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except ssl.SSLError:
        raise ValueError(f"{name} hold no certificate in PEM") from None
