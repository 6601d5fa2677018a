"""Files for TLS are read and checked at the start; a fault names the flag."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from service.credentials import TlsFiles, read_tls


def files(certificates, **changes) -> TlsFiles:
    return TlsFiles(**{"certificate": certificates.server, "key": certificates.server_key, **changes})


def test_what_is_good_becomes_a_context_that_demands_certificates_only_when_told(certificates):
    assert read_tls(files(certificates)).context.verify_mode is ssl.CERT_NONE
    mutual = read_tls(files(certificates, client_ca=certificates.ca))
    assert mutual.context.verify_mode is ssl.CERT_REQUIRED
    assert mutual.context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_key_is_not_printed(certificates):
    assert "PRIVATE KEY" not in repr(read_tls(files(certificates)))


@pytest.mark.parametrize(
    ("part", "source", "said"),
    [
        ("certificate", "missing", "--tls-cert: {path} cannot be read: No such file"),
        ("key", "missing", "--tls-key: {path} cannot be read: No such file"),
        ("client_ca", "missing", "--tls-client-ca: {path} cannot be read: No such file"),
        ("certificate", "nonsense", "--tls-cert: {path} holds no certificate in PEM"),
        ("certificate", "server.key", "--tls-cert: {path} holds no certificate in PEM"),
        ("key", "nonsense", "--tls-key: {path} is not an unencrypted private key in PEM"),
        ("key", "encrypted", "--tls-key: {path} is not an unencrypted private key in PEM"),
        ("key", "client.key", "--tls-key: {path} is not the key of"),
        ("client_ca", "nonsense", "--tls-client-ca: {path} holds no certificate in PEM"),
    ],
)
def test_a_file_that_does_not_do_is_named_with_its_flag(certificates, tmp_path: Path, part, source, said):
    path = tmp_path / source
    if source == "nonsense":
        path.write_bytes(b"\xff not PEM")
    elif source == "encrypted":
        key = serialization.load_pem_private_key(certificates.server_key.read_bytes(), None)
        encryption = serialization.BestAvailableEncryption(b"secret")
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    elif source != "missing":
        path = certificates.ca.parent / source
    with pytest.raises(ValueError, match=re.escape(said.format(path=path))):
        read_tls(files(certificates, **{part: path}))
