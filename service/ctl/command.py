"""`python -m service ctl VERB`: its arguments, one call each, and tables for people.

Results go to stdout, progress to stderr; `--json` prints what the admin plane answered. Exit 1 when it refused or an
operation failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from service.ctl.admin_client import AdminClient

_POLICIES = "/v1/fleet/policies"
_Verb = Callable[["AdminClient", argparse.Namespace], Any]


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
    return 1 if _failed(answer) else 0


def _policies(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get(_POLICIES)


def _policy(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get(_policy_path(options))


def _register(client: AdminClient, options: argparse.Namespace) -> Any:
    body = {"location": options.location, "revision": options.revision}
    return _followed(client, options, client.post(f"{_policy_path(options)}/revisions", body))


def _operation(custom: str) -> _Verb:
    def act(client: AdminClient, options: argparse.Namespace) -> Any:
        return _followed(client, options, client.post(f"{_revision_path(options)}:{custom}"))

    return act


def _promote(client: AdminClient, options: argparse.Namespace) -> Any:
    body = {
        "move_episodes": options.move_episodes,
        "keep_previous": options.keep_previous,
        "guard": _guard_settings(options),
    }
    return _followed(client, options, client.post(f"{_revision_path(options)}:promote", body))


def _roll_back(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.post(f"{_policy_path(options)}:rollBack", {"reason": options.reason}))


def _split(client: AdminClient, options: argparse.Namespace) -> Any:
    body = {"shares": dict(options.shares), "guard": _guard_settings(options)}
    return _followed(client, options, client.post(f"{_policy_path(options)}:split", body))


def _shadow(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.post(f"{_revision_path(options)}:shadow", {"share": options.share}))


def _guard(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.put(f"{_policy_path(options)}/guard", _guard_settings(options) or {})


def _observation_map(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.put(f"{_policy_path(options)}/observationMap", options.map)


def _delete(client: AdminClient, options: argparse.Namespace) -> Any:
    client.delete(_revision_path(options))


def _operations(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/operations", policy=options.policy or None, limit=options.limit)


def _follow(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.get(f"/v1/operations/{quote(options.operation, safe='')}"))


def _audit(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/audit", policy=options.policy or None, limit=options.limit)


def _gateways(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/gateways")


def _remove_gateway(client: AdminClient, options: argparse.Namespace) -> Any:
    client.delete(f"/v1/gateways/{quote(options.gateway, safe='')}")


def _followed(client: AdminClient, options: argparse.Namespace, operation: Mapping[str, Any]) -> Any:
    if not options.wait:
        return operation
    return client.follow(operation, lambda step: print(f"ctl: {step}", file=sys.stderr, flush=True))


def _policy_path(options: argparse.Namespace) -> str:
    return f"{_POLICIES}/{quote(options.policy, safe='')}"


def _revision_path(options: argparse.Namespace) -> str:
    return f"{_policy_path(options)}/revisions/{quote(options.revision, safe='')}"


def _guard_settings(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the flags set; None when they set nothing."""
    names = ("max_error_rate", "max_violation_rate", "max_latency_p95_s", "window_s", "min_requests", "watch_s")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return given or None


def format_answer(answer: Any) -> str | None:
    """A table, or a line; None when there is nothing to say."""
    if answer is None:
        return None
    if "policies" in answer:
        return "\n\n".join(_format_policy(policy) for policy in answer["policies"]) or "no policy is registered"
    if "stable" in answer:
        return _format_policy(answer)
    for key in ("operations", "entries", "gateways"):
        if key in answer:
            return _table(answer[key], _COLUMNS[key])
    if "operation" in answer:
        words = [answer["kind"], answer["policy"], answer["revision"], answer["state"], answer["error"]]
        return f"{answer['operation']}: {' '.join(word for word in words if word)}"
    return None


_COLUMNS = {
    "revisions": ("revision", "variant", "state", "share", "location", "error"),
    "operations": ("operation", "kind", "policy", "revision", "actor", "state", "error"),
    "entries": ("number", "at", "actor", "action", "policy", "from_revision", "to_revision", "outcome"),
    "gateways": ("gateway", "address", "generation", "started_at"),
}


def _format_policy(policy: Mapping[str, Any]) -> str:
    shadow = f", shadow {policy['shadow']['revision']} ({policy['shadow']['share']:.0%})" if policy["shadow"] else ""
    rows = [{**row, "share": f"{row['share']:.0%}" if row["share"] else ""} for row in policy["revisions"]]
    serving = policy["stable"] or "nothing"
    return f"{policy['name']}: serves {serving}{shadow}\n{_table(rows, _COLUMNS['revisions'])}"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _failed(answer: Any) -> bool:
    return isinstance(answer, dict) and "operation" in answer and answer["state"] == "failed"


def _share(text: str) -> tuple[str, float]:
    revision, separator, share = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return revision, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not REVISION=SHARE, for example 0123456789ab=0.2") from None


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
_OF_POLICY = _argument("--policy", default="", help="of this policy only")
_LIMIT = _argument("--limit", type=int, default=20, help="how many (default: 20)")
_GUARD = (
    _argument("--max-error-rate", type=float, metavar="RATE", help="roll back above this, 0 to 1"),
    _argument("--max-violation-rate", type=float, metavar="RATE", help="roll back above this, 0 to 1"),
    _argument("--max-latency-p95-s", type=float, metavar="SECONDS", help="roll back above this"),
    _argument("--window-s", type=float, metavar="SECONDS", help="judge the last seconds (default: 30)"),
    _argument("--min-requests", type=int, metavar="N", help="judge from so many on (default: 20)"),
    _argument("--watch-s", type=float, metavar="SECONDS", help="watch for so long after a change (default: 600)"),
)
_VERBS: tuple[tuple[str, str, _Verb, tuple[Callable[[argparse.ArgumentParser], None], ...]], ...] = (
    ("policies", "what is served and registered", _policies, ()),
    ("policy", "one policy: its revisions, shares and shadow", _policy, (_POLICY,)),
    (
        "register",
        "make a checkpoint known: a directory of the store, or a URL",
        _register,
        (
            _POLICY,
            _argument("location", metavar="LOCATION"),
            _argument("--revision", default="", metavar="DIGEST", help="refuse any other than this"),
            _NO_WAIT,
        ),
    ),
    ("load", "have a revision ready everywhere, without traffic", _operation("load"), (_POLICY, _REVISION, _NO_WAIT)),
    (
        "promote",
        "give a revision all new episodes",
        _promote,
        (
            _POLICY,
            _REVISION,
            _NO_WAIT,
            _argument("--move-episodes", action="store_true", help="those in progress as well"),
            _argument("--keep-previous", action="store_true", help="keep the old one loaded"),
            *_GUARD,
        ),
    ),
    (
        "rollback",
        "end a split, or go back to the revision before",
        _roll_back,
        (_POLICY, _NO_WAIT, _argument("--reason", default="", help="for the audit log")),
    ),
    (
        "split",
        "give revisions a share of new episodes each",
        _split,
        (_POLICY, _argument("shares", nargs="+", type=_share, metavar="REVISION=SHARE"), _NO_WAIT, *_GUARD),
    ),
    (
        "shadow",
        "copy a share of the requests to a revision; 0 ends that",
        _shadow,
        (_POLICY, _REVISION, _argument("share", type=float, metavar="SHARE"), _NO_WAIT),
    ),
    ("guard", "when to roll back without being asked; no flags: never", _guard, (_POLICY, *_GUARD)),
    (
        "observation-map",
        "which of openpi's robots' keys is which input; {} takes the map away",
        _observation_map,
        (_POLICY, _argument("map", type=_json_file, metavar="FILE", help="JSON")),
    ),
    ("drain", "take a revision out of a split", _operation("drain"), (_POLICY, _REVISION, _NO_WAIT)),
    ("unload", "give back a revision's memory", _operation("unload"), (_POLICY, _REVISION, _NO_WAIT)),
    ("delete", "forget an unloaded revision", _delete, (_POLICY, _REVISION)),
    ("operations", "what runs and what ran", _operations, (_OF_POLICY, _LIMIT)),
    ("follow", "an operation to its end", _follow, (_argument("operation", metavar="OPERATION"), _NO_WAIT)),
    ("audit", "who did what, when", _audit, (_OF_POLICY, _LIMIT)),
    ("gateways", "the processes that serve", _gateways, ()),
    ("remove-gateway", "say that a gateway is dead", _remove_gateway, (_argument("gateway", metavar="GATEWAY"),)),
)
