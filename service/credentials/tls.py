"""Certificate, key and client CA, read and checked before they serve, and in the form that each server takes.

Owns what makes them usable, a fault of which names the flag it came by, and their replacement by newer files while the
service runs. Does not own who listens.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

_logger = logging.getLogger(__name__)
RELOAD_INTERVAL_S = 5.0


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
    # For HTTP and websockets.
    context: ssl.SSLContext = field(repr=False, compare=False)

    def grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class ServingTls:
    """What all servers of this process show. New files count for connections that begin after them."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        # What the files looked like when they were last read.
        self._seen: tuple[Any, ...] = ()

    @property
    def current(self) -> ServerTls:
        return self._tls

    def context(self) -> ssl.SSLContext:
        """For HTTP and websockets: a context whose connections are those of the current one."""
        return _CurrentContext(lambda: self._tls.context)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        given = self._tls

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """Asked by gRPC before each handshake; None keeps what it has."""
            nonlocal given
            if given is self._tls:
                return None
            given = self._tls
            return given.grpc_configuration()

        # gRPC's type stubs do not know that None may come.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", newer)
        return grpc.dynamic_ssl_server_credentials(
            given.grpc_configuration(), fetch, require_client_authentication=given.client_ca is not None
        )

    def reload(self) -> bool:
        """Whether there is something new, which serves from now on. Blocking.

        Raises ValueError, once, for files that do not do, OSError for one that goes while they are read; what served
        goes on serving.
        """
        files, seen = self._tls.files, _looks(self._tls.files)
        if seen == self._seen:
            return False
        self._seen = seen
        tls = read_tls(files)
        # Files that changed while they were read are read again next time: they need not belong together.
        if _looks(files) != seen or tls == self._tls:
            return False
        self._tls = tls
        return True

    async def follow(self, *, interval_s: float = RELOAD_INTERVAL_S) -> None:
        """Reloads what changed, until it is cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            fields = {"certificate": str(self._tls.files.certificate)}
            try:
                if await asyncio.to_thread(self.reload):
                    _logger.info("certificates reloaded", extra={"fields": fields})
            except ValueError as error:
                _logger.error("new certificates refused", extra={"fields": {**fields, "error": str(error)}})
            except OSError as error:
                # A file that was there went away meanwhile, which says nothing of what comes in its place.
                self._seen = ()
                _logger.error("new certificates cannot be read", extra={"fields": {**fields, "error": str(error)}})


def read_tls(files: TlsFiles) -> ServerTls:
    """Raises ValueError, naming the flag whose file does not do."""
    certificate, key = _read("--tls-cert", files.certificate), _read("--tls-key", files.key)
    client_ca = _read("--tls-client-ca", files.client_ca) if files.client_ca else None
    _check_certificates("--tls-cert", files.certificate, certificate)
    if files.client_ca is not None and client_ca is not None:
        _check_certificates("--tls-client-ca", files.client_ca, client_ca)
    try:
        context = _context(files)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"--tls-key: {files.key} is not the key of {files.certificate}") from None
        raise ValueError(f"--tls-key: {files.key} is not an unencrypted private key in PEM") from None
    return ServerTls(files=files, certificate=certificate, key=key, client_ca=client_ca, context=context)


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


def _looks(files: TlsFiles) -> tuple[Any, ...]:
    """Changes when a file is written or replaced, also behind a link."""
    looks = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            status = path.stat() if path is not None else None
        except OSError:
            status = None
        looks.append((status.st_mtime_ns, status.st_size, status.st_ino) if status is not None else None)
    return tuple(looks)


class _CurrentContext(ssl.SSLContext):
    """Hands every connection to another context: a client CA cannot be taken out of one that exists."""

    _current: Callable[[], ssl.SSLContext]

    def __new__(cls, current: Callable[[], ssl.SSLContext]) -> _CurrentContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context._current = current
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """All that asyncio's servers do with a context."""
        return self._current().wrap_bio(*arguments, **options)
