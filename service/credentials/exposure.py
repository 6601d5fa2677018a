"""Whether a service that listens here would answer strangers, or asks a Triton past them, and what is done about it.

Owns the rules and the warnings. Does not own listening, nor Triton.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from service.credentials.cache import TokenCache

_logger = logging.getLogger(__name__)
WARNING_INTERVAL_S = 3600.0


class ExposedError(ValueError):
    """What was asked for would let anybody on the network in, or read along."""


def check_exposure(hosts: Collection[str], *, tls: bool, tokens: bool, insecure_listen: bool) -> bool:
    """Whether there is something to warn of. Raises ExposedError unless that was asked for.

    Beyond loopback both are needed: without tokens anybody may ask, without TLS anybody may read the tokens.
    """
    exposed = [host for host in hosts if not is_loopback(host)]
    if not exposed or (tls and tokens):
        return False
    if not insecure_listen:
        missing = " and ".join(
            text
            for text, there in (
                ("no TLS (--tls-cert, --tls-key)", tls),
                ("no token (`python -m service token create --registry URL`)", tokens),
            )
            if not there
        )
        raise ExposedError(
            f"{', '.join(exposed)} is not loopback, and there is {missing}; --insecure-listen serves anyway"
        )
    return True


async def warn_while_exposed(tokens: TokenCache, *, tls: bool, interval_s: float = WARNING_INTERVAL_S) -> None:
    """At once and then every hour, until it is cancelled."""
    while True:
        _logger.warning(
            "listening insecurely",
            extra={"fields": {"tls": tls, "tokens": tokens.snapshot.required, "allowed_by": "--insecure-listen"}},
        )
        await asyncio.sleep(interval_s)


def is_loopback(host: str) -> bool:
    """Names other than localhost count as open: what they stand for is another's to change."""
    if host == "localhost":
        return True
    try:
        return _address(host).is_loopback
    except ValueError:
        return False


def warn_of_public_triton(addresses: Collection[str]) -> None:
    """Says which of these, "host:port", are reached over a network that is not our own: Triton speaks no TLS.

    Blocking: names are looked up; one that has no address yet is not warned of.
    """
    for address in addresses:
        host = address.rpartition(":")[0]
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None)}
        except OSError:
            continue
        if public := sorted(each for each in found if not _address(each).is_private):
            fields = {"address": address, "public": public, "remedy": "reach it over a private network or a tunnel"}
            _logger.warning("triton is asked in the clear", extra={"fields": fields})


def _address(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host.strip("[]"))
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
