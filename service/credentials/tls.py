"""Certificate, key and client CA, read and checked once at the start, and in the form that each server takes.

Owns what makes them usable; a fault names the flag it came by. Does not own who listens.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """Where they are, all in PEM. A client CA demands that clients show a certificate of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """What `read_tls` found good."""

    files: TlsFiles
    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None

    def grpc_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_ca,
            require_client_auth=self.client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """For HTTP and websockets. Reads the files again."""
        return _context(self.files)


def read_tls(files: TlsFiles) -> ServerTls:
    """Raises ValueError, naming the flag whose file does not do."""
    tls = ServerTls(
        files=files,
        certificate=_read("--tls-cert", files.certificate),
        key=_read("--tls-key", files.key),
        client_ca=_read("--tls-client-ca", files.client_ca) if files.client_ca else None,
    )
    _check_certificates("--tls-cert", files.certificate, tls.certificate)
    if files.client_ca is not None and tls.client_ca is not None:
        _check_certificates("--tls-client-ca", files.client_ca, tls.client_ca)
    try:
        _context(files)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"--tls-key: {files.key} is not the key of {files.certificate}") from None
        raise ValueError(f"--tls-key: {files.key} is not an unencrypted private key in PEM") from None
    return tls


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{flag}: {path} cannot be read: {error.strerror}") from None


def _check_certificates(flag: str, path: Path, pem: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode("ascii", errors="ignore"))
    except ssl.SSLError:
        raise ValueError(f"{flag}: {path} holds no certificate in PEM") from None


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key that wants a password would otherwise ask for it on the terminal.
    context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
