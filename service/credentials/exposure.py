"""Whether a service that listens here would answer strangers, and what is done about it.

Owns the rule and the warning. Does not own listening.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from ipaddress import IPv6Address, ip_address

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
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
