"""`python -m service ctl VERB`: its arguments, and what its ending means.

Results go to stdout, progress to stderr; `--json` prints what the admin plane answered. Exit 1 when it refused or an
operation failed. Does not own the calls (calls.py) nor how an answer is printed (answers.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.ctl import calls
from service.ctl.answers import format_answer, is_failure

_MAX_DAYS = 36_500.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--admin", default="http://127.0.0.1:8080", metavar="URL", help="of the admin plane")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds a token (default: $PREMOTOR_TOKEN_FILE)")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="authority of the admin plane's certificate")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="our own certificate")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="and its key")
    parser.add_argument("--json", action="store_true", help="print what was answered")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, what, act, arguments in _VERBS:
        verb = verbs.add_parser(name, help=what, description=what)
        verb.set_defaults(act=act)
        for argument in arguments:
            argument(verb)


def run(options: argparse.Namespace) -> int:
    # Here, so that no other verb of the service waits for an HTTP client.
    from service.ctl.admin_client import AdminAddress, AdminClient, AdminError

    token_file = options.token_file
    if token_file is None and (named := os.environ.get("PREMOTOR_TOKEN_FILE")):
        token_file = Path(named)
    address = AdminAddress(
        url=options.admin,
        token_file=token_file,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
    )
    try:
        with AdminClient(address) as client:
            answer = options.act(client, options)
    except (AdminError, OSError) as error:
        print(f"ctl: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(answer, indent=2))
    elif (text := format_answer(answer)) is not None:
        print(text)
    return 1 if is_failure(answer) else 0


def _share(text: str) -> tuple[str, float]:
    revision, separator, share = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return revision, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not REVISION=SHARE, for example 0123456789ab=0.2") from None


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= _MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text} came, expected more than 0 and at most {_MAX_DAYS:g}")
    return days


def _json_file(text: str) -> Any:
    try:
        return json.loads(Path(text).read_bytes())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _argument(*names: str, **settings: Any) -> Callable[[argparse.ArgumentParser], None]:
    return lambda verb: verb.add_argument(*names, **settings) and None


_POLICY = _argument("policy", metavar="POLICY")
_REVISION = _argument("revision", metavar="REVISION", help="12 hex digits")
_NO_WAIT = _argument("--no-wait", dest="wait", action="store_false", help="print the operation and leave it running")
_SCHEMA_CHANGE = _argument(
    "--allow-schema-change", action="store_true", help="also where robots that play will refuse its actions"
)
_OF_POLICY = _argument("--policy", default="", help="of this policy only")
_OPERATION = _argument("operation", metavar="OPERATION")
_TOKEN = _argument("token", metavar="TOKEN_ID", help="as `tokens` says; the middle part of the token")
_LIMIT = _argument("--limit", type=int, default=20, help="how many (default: 20)")
_GUARD = (
    _argument("--max-error-rate", type=float, metavar="RATE", help="roll back above this, 0 to 1"),
    _argument("--max-violation-rate", type=float, metavar="RATE", help="roll back above this, 0 to 1"),
    _argument("--max-latency-p95-s", type=float, metavar="SECONDS", help="roll back when over 5 %% take longer"),
    _argument("--window-s", type=float, metavar="SECONDS", help="judge the last seconds (default: 30)"),
    _argument("--min-requests", type=int, metavar="N", help="judge from so many on, over all gateways (default: 20)"),
    _argument("--watch-s", type=float, metavar="SECONDS", help="watch for so long after a change (default: 600)"),
)
_VERBS: tuple[tuple[str, str, calls.Verb, tuple[Callable[[argparse.ArgumentParser], None], ...]], ...] = (
    ("policies", "what is served and registered", calls.policies, ()),
    ("policy", "one policy: its revisions, shares and shadow", calls.policy, (_POLICY,)),
    (
        "register",
        "make a checkpoint known: a directory of the store, or a URL",
        calls.register,
        (
            _POLICY,
            _argument("location", metavar="LOCATION"),
            _argument("--revision", default="", metavar="DIGEST", help="refuse any other than this"),
            _NO_WAIT,
        ),
    ),
    (
        "load",
        "have a revision ready everywhere, without traffic",
        calls.operation("load"),
        (_POLICY, _REVISION, _NO_WAIT),
    ),
    ("probe", "probe a revision again, on every gateway", calls.operation("probe"), (_POLICY, _REVISION, _NO_WAIT)),
    (
        "promote",
        "give a revision all new episodes",
        calls.promote,
        (
            _POLICY,
            _REVISION,
            _NO_WAIT,
            _argument("--move-episodes", action="store_true", help="those in progress as well"),
            _argument("--keep-previous", action="store_true", help="keep the old one loaded"),
            _SCHEMA_CHANGE,
            *_GUARD,
        ),
    ),
    (
        "rollback",
        "end a split, or go back to the revision before",
        calls.roll_back,
        (_POLICY, _NO_WAIT, _argument("--reason", default="", help="for the audit log")),
    ),
    (
        "split",
        "give revisions a share of new episodes each",
        calls.split,
        (
            _POLICY,
            _argument("shares", nargs="+", type=_share, metavar="REVISION=SHARE"),
            _NO_WAIT,
            _SCHEMA_CHANGE,
            *_GUARD,
        ),
    ),
    (
        "shadow",
        "copy a share of the requests to a revision; 0 ends that",
        calls.shadow,
        (_POLICY, _REVISION, _argument("share", type=float, metavar="SHARE"), _NO_WAIT),
    ),
    ("guard", "when to roll back without being asked; no flags: never", calls.guard, (_POLICY, *_GUARD)),
    (
        "observation-map",
        "which of openpi's robots' keys is which input; {} takes the map away",
        calls.observation_map,
        (_POLICY, _argument("map", type=_json_file, metavar="FILE", help="JSON")),
    ),
    ("drain", "take a revision out of a split", calls.operation("drain"), (_POLICY, _REVISION, _NO_WAIT)),
    ("unload", "give back a revision's memory", calls.operation("unload"), (_POLICY, _REVISION, _NO_WAIT)),
    ("delete", "forget an unloaded revision", calls.delete, (_POLICY, _REVISION)),
    ("retire", "end serving a policy; episodes in progress end first", calls.retire, (_POLICY, _NO_WAIT)),
    ("delete-policy", "forget a policy that serves nothing, and its revisions", calls.delete_policy, (_POLICY,)),
    ("operations", "what runs and what ran", calls.operations, (_OF_POLICY, _LIMIT)),
    ("follow", "an operation to its end", calls.follow, (_OPERATION, _NO_WAIT)),
    ("cancel", "end an operation; what served goes on serving", calls.cancel, (_OPERATION,)),
    ("audit", "who did what, when", calls.audit, (_OF_POLICY, _LIMIT)),
    ("gateways", "the processes that serve", calls.gateways, ()),
    ("placements", "how far each gateway is with a revision", calls.placements, (_POLICY, _REVISION)),
    ("remove-gateway", "say that a gateway is dead", calls.remove_gateway, (_argument("gateway", metavar="GATEWAY"),)),
    ("tokens", "credentials, without their secrets", calls.tokens, ()),
    (
        "create-token",
        "print a new token, once; from the first one on, every call needs one",
        calls.create_token,
        (
            _argument("--name", required=True, help="who or what will hold it, for logs and the audit"),
            _argument(
                "--scope",
                action="append",
                required=True,
                choices=("infer", "observe", "admin"),
                help="chunks; reading the admin plane; changing things there. May come again",
            ),
            _argument("--policy", action="append", default=[], help="infer for this one alone; may come again"),
            _argument("--expires-in-days", type=_days, metavar="DAYS", help="without it, it never expires"),
            _argument("--max-requests-per-s", type=float, metavar="N", help="on each gateway"),
            _argument(
                "--max-in-flight", type=int, metavar="N", help="requests at a time, on each gateway; 128 without it"
            ),
            _argument(
                "--max-streams", type=int, metavar="N", help="streams and connections, on each gateway; 128 without it"
            ),
        ),
    ),
    (
        "rotate-token",
        "print a new secret for a token, once",
        calls.rotate_token,
        (_TOKEN, _argument("--grace-s", type=float, default=0.0, help="how long the old secret stays good")),
    ),
    ("revoke-token", "end a token, for good", calls.revoke_token, (_TOKEN,)),
)
