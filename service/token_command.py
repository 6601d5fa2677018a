"""`python -m service token`: make, list, rotate and revoke tokens in the registry's database, whatever else runs.

Owns the verbs' flags and what they print: a new token alone on stdout, once, so that `> FILE` keeps it; what is said
about it on stderr. Gateways that run go by a change within a second.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from service.command_line import HelpFormatter

if TYPE_CHECKING:
    from service.credentials import TokenRecord
    from service.registry import Registry

_MAX_DAYS = 36_500.0


def add_token_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Each sets `verb`, which makes of the parsed flags what runs; ValueError for flags that do not go together."""
    token = verbs.add_parser("token", help="credentials of robots and operators", formatter_class=HelpFormatter)
    actions = token.add_subparsers(required=True, metavar="WHAT")
    create = actions.add_parser(
        "create",
        help="print a new token, once; from the first one on, every call needs one",
        formatter_class=HelpFormatter,
    )
    create.set_defaults(verb=_create)
    create.add_argument("--name", required=True, help="who or what will hold it, for logs and the audit")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=("infer", "observe", "admin"),
        help="chunks; reading the admin plane; changing things there. May come again",
    )
    create.add_argument("--policy", action="append", default=[], help="infer for this one alone; may come again")
    create.add_argument("--expires-in-days", type=float, metavar="DAYS", help="without it, it never expires")
    create.add_argument("--max-requests-per-s", type=float, metavar="N", help="on each gateway")
    create.add_argument(
        "--max-in-flight", type=int, metavar="N", help="requests at a time, on each gateway; 128 without it"
    )
    create.add_argument(
        "--max-streams", type=int, metavar="N", help="streams and connections, on each gateway; 128 without it"
    )
    listing = actions.add_parser("list", help="one line of JSON per token", formatter_class=HelpFormatter)
    listing.set_defaults(verb=_list)
    rotate = actions.add_parser("rotate", help="print a new secret for a token, once", formatter_class=HelpFormatter)
    rotate.set_defaults(verb=_rotate)
    rotate.add_argument("--grace-s", type=float, default=0.0, help="how long the old secret stays good")
    revoke = actions.add_parser("revoke", help="end a token, for good", formatter_class=HelpFormatter)
    revoke.set_defaults(verb=_revoke)
    for action in (rotate, revoke):
        action.add_argument("token_id", metavar="TOKEN_ID", help="as `list` says; the middle part of the token")
    for action in (create, listing, rotate, revoke):
        action.add_argument("--registry", required=True, metavar="URL", help="sqlite:///FILE or postgresql://...")


def _create(options: argparse.Namespace) -> Callable[[], int]:
    from service.credentials import Caps, Scope, TokenSpec
    from service.credentials.issuing import create_token

    spec = TokenSpec(
        name=options.name,
        scopes=frozenset(Scope(scope) for scope in options.scope),
        policies=tuple(options.policy),
        expires_at=_expiry(options.expires_in_days),
        caps=Caps(
            max_requests_per_s=options.max_requests_per_s,
            max_in_flight=options.max_in_flight,
            max_streams=options.max_streams,
        ),
    )

    def create(registry: Registry) -> None:
        record, issued = create_token(registry, spec, actor=_actor())
        _say("created", record)
        print(issued.token)

    return partial(_run, options.registry, create)


def _list(options: argparse.Namespace) -> Callable[[], int]:
    def show(registry: Registry) -> None:
        for record in registry.tokens():
            print(json.dumps(_described(record)))

    return partial(_run, options.registry, show)


def _rotate(options: argparse.Namespace) -> Callable[[], int]:
    from service.credentials.issuing import check_grace, rotate_token

    check_grace(options.grace_s)

    def rotate(registry: Registry) -> None:
        record, issued = rotate_token(registry, options.token_id, grace_s=options.grace_s, actor=_actor())
        _say("rotated", record)
        print(issued.token)

    return partial(_run, options.registry, rotate)


def _revoke(options: argparse.Namespace) -> Callable[[], int]:
    def revoke(registry: Registry) -> None:
        _say("revoked", registry.revoke_token(options.token_id, actor=_actor()))

    return partial(_run, options.registry, revoke)


def _run(url: str, work: Callable[[Registry], None]) -> int:
    from service.errors import ServiceError
    from service.registry import Registry, RegistryUnavailableError, open_database

    try:
        registry = Registry(open_database(url))
    except (ValueError, RegistryUnavailableError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    try:
        work(registry)
    except (ServiceError, RegistryUnavailableError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        registry.close()
    return 0


def _say(what: str, record: TokenRecord) -> None:
    print(f"{what}: {json.dumps(_described(record))}", file=sys.stderr)


def _described(record: TokenRecord) -> dict[str, Any]:
    return {
        "token_id": record.token_id,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "policies": list(record.policies),
        "created_at": _time(record.created_at),
        "expires_at": _time(record.expires_at),
        "revoked_at": _time(record.revoked_at),
        "previous_until": _time(record.previous_until),
        "max_requests_per_s": record.caps.max_requests_per_s,
        "max_in_flight": record.caps.max_in_flight,
        "max_streams": record.caps.max_streams,
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at is not None else None


def _expiry(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= _MAX_DAYS:
        raise ValueError(f"--expires-in-days is {days}, expected more than 0 and at most {_MAX_DAYS:g}")
    return datetime.now(UTC) + timedelta(days=days)


def _actor() -> str:
    """For the audit: whoever can write the database may call itself anything."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unnamed user"
    return f"command line ({user})"[:128]
