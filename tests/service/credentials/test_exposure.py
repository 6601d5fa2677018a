"""A service beyond loopback has TLS and tokens, or was told to do without, and keeps saying so."""

from __future__ import annotations

import asyncio
import logging

import pytest

from service.credentials import TokenCache
from service.credentials.exposure import (
    ExposedError,
    check_exposure,
    is_loopback,
    warn_of_public_triton,
    warn_while_exposed,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"])
def test_loopback_needs_neither_tls_nor_tokens(host):
    assert is_loopback(host)
    assert not check_exposure([host], tls=False, tokens=False, insecure_listen=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "::ffff:10.0.0.7", "gateway.local", "localhost.example"])
def test_anything_else_needs_both(host):
    assert not is_loopback(host)
    with pytest.raises(ExposedError, match=r"no TLS .* and no token .*; --insecure-listen"):
        check_exposure(["127.0.0.1", host], tls=False, tokens=False, insecure_listen=False)
    with pytest.raises(ExposedError, match=r"there is no token \(`python -m service token create"):
        check_exposure([host], tls=True, tokens=False, insecure_listen=False)
    with pytest.raises(ExposedError, match=r"there is no TLS \(--tls-cert, --tls-key\); "):
        check_exposure([host], tls=False, tokens=True, insecure_listen=False)
    assert not check_exposure([host], tls=True, tokens=True, insecure_listen=False)


def test_being_told_to_is_no_reason_to_warn_where_nothing_is_open():
    assert check_exposure(["0.0.0.0"], tls=True, tokens=False, insecure_listen=True)
    assert not check_exposure(["0.0.0.0"], tls=True, tokens=True, insecure_listen=True)
    assert not check_exposure(["localhost"], tls=False, tokens=False, insecure_listen=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("localhost:8000", False),
        ("[::1]:8001", False),
        ("10.0.0.7:8001", False),
        ("[fd00::7]:8001", False),
        ("203.0.113.7.invalid:8001", False),
        ("8.8.8.8:8001", True),
        ("[::ffff:8.8.8.8]:8001", True),
        ("[2001:4860:4860::8888]:8001", True),
    ],
)
def test_a_triton_across_a_public_network_is_warned_of_since_it_speaks_no_tls(address, public, caplog):
    warn_of_public_triton([address])
    said = [record.fields for record in caplog.records if record.message == "triton is asked in the clear"]
    assert [each["address"] for each in said] == [address] * public


async def test_the_warning_comes_at_once_and_again_and_again(desk):
    heard: asyncio.Queue[logging.LogRecord] = asyncio.Queue()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.put_nowait(record)

    ear = Ear(logging.WARNING)
    logging.getLogger().addHandler(ear)
    cache = TokenCache()
    warning = asyncio.create_task(warn_while_exposed(cache, tls=True, interval_s=0.01))
    try:
        async with asyncio.timeout(5):
            records = [await heard.get(), await heard.get()]
            desk.give("admin")
            cache.refresh(desk)
            while (latest := await heard.get()).fields["tokens"] is False:
                pass
    finally:
        logging.getLogger().removeHandler(ear)
        warning.cancel()
        await asyncio.gather(warning, return_exceptions=True)
    assert {record.getMessage() for record in records} == {"listening insecurely"}
    assert latest.fields == {"tls": True, "tokens": True, "allowed_by": "--insecure-listen"}
