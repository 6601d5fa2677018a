"""Which policy an openpi robot asks: openpi's wire has no word for it, a robot has a path and a key.

Owns the form of the path and the rule. Does not own what is served, nor what a key is worth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from service.errors import InvalidRequestError, NotReadyError, quoted

_PREFIX = "/policies/"
_MAX_NAMED = 16


@dataclass(frozen=True, kw_only=True)
class Address:
    """`/policies/NAME`, or that before any other path; `policy` is empty where the path names none."""

    policy: str
    # Without the name: what else it says, such as a dialect. "/" where that is nothing.
    path: str


def read_address(target: str) -> Address:
    """Of what a request asks for, with or without a query."""
    path = target.partition("?")[0]
    if not path.startswith(_PREFIX):
        return Address(policy="", path=path)
    name, _, rest = path.removeprefix(_PREFIX).partition("/")
    return Address(policy=unquote(name), path=f"/{rest}")


def default_policy(names: Collection[str], *, said: str, first: str) -> str:
    """Whom robots ask that say nothing: the one that was `said`, else the one that served `first`, else the only one.

    Empty where several could be meant. What is promoted later changes nothing for robots that are there.
    """
    if said or first in names:
        return said or first
    return next(iter(names)) if len(names) == 1 else ""


def asked_policy(address: Address, *, names: Sequence[str], allowed: Collection[str], said: str, first: str) -> str:
    """`names` are those that should answer; `allowed` those that the key is for, empty for all.

    The one of the path; else the default, where the key is for it; else the only one that the key is for. Whether the
    key is for what is found is still to be asked. Raises InvalidRequestError where several are left, NotReadyError
    where none is.
    """
    if address.policy:
        return address.policy
    default = default_policy(names, said=said, first=first)
    left = [name for name in names if not allowed or name in allowed]
    if default and (not allowed or default in allowed or not left):
        return default
    if len(left) == 1:
        return left[0]
    if not left:
        raise NotReadyError("no policy that could be meant is ready yet", retry_after_s=1.0)
    named = ", ".join(quoted(name) for name in left[:_MAX_NAMED]) + (", ..." if len(left) > _MAX_NAMED else "")
    raise InvalidRequestError(
        "",
        f"which of the policies {named} is asked? Connect to {_PREFIX}NAME, or with a key for one of them; "
        "serve --openpi-policy NAME says it for all robots that do not",
    )
