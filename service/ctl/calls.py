"""What each verb of `ctl` asks of the admin plane.

Owns the way from a verb's arguments to its call. Does not own the arguments (command.py), nor how an answer is printed
(answers.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from service.ctl.admin_client import AdminClient

_POLICIES = "/v1/fleet/policies"
Verb = Callable[["AdminClient", argparse.Namespace], Any]


def policies(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get(_POLICIES)


def policy(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get(_policy_path(options))


def register(client: AdminClient, options: argparse.Namespace) -> Any:
    body = {"location": options.location, "revision": options.revision}
    return _followed(client, options, client.post(f"{_policy_path(options)}/revisions", body))


def operation(custom: str) -> Verb:
    def act(client: AdminClient, options: argparse.Namespace) -> Any:
        return _followed(client, options, client.post(f"{_revision_path(options)}:{custom}"))

    return act


def promote(client: AdminClient, options: argparse.Namespace) -> Any:
    body = {
        "move_episodes": options.move_episodes,
        "keep_previous": options.keep_previous,
        "allow_schema_change": options.allow_schema_change,
        "guard": _guard_settings(options),
    }
    return _followed(client, options, client.post(f"{_revision_path(options)}:promote", body))


def roll_back(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.post(f"{_policy_path(options)}:rollBack", {"reason": options.reason}))


def split(client: AdminClient, options: argparse.Namespace) -> Any:
    body = {
        "shares": dict(options.shares),
        "allow_schema_change": options.allow_schema_change,
        "guard": _guard_settings(options),
    }
    return _followed(client, options, client.post(f"{_policy_path(options)}:split", body))


def shadow(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.post(f"{_revision_path(options)}:shadow", {"share": options.share}))


def guard(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.put(f"{_policy_path(options)}/guard", _guard_settings(options) or {})


def observation_map(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.put(f"{_policy_path(options)}/observationMap", options.map)


def retire(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.post(f"{_policy_path(options)}:retire"))


def delete(client: AdminClient, options: argparse.Namespace) -> Any:
    client.delete(_revision_path(options))


def delete_policy(client: AdminClient, options: argparse.Namespace) -> Any:
    client.delete(_policy_path(options))


def operations(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/operations", policy=options.policy or None, limit=options.limit)


def follow(client: AdminClient, options: argparse.Namespace) -> Any:
    return _followed(client, options, client.get(_operation_path(options)))


def cancel(client: AdminClient, options: argparse.Namespace) -> Any:
    cancelled = client.post(f"{_operation_path(options)}:cancel")
    _say(f"{cancelled['kind']} of {cancelled['policy']} is cancelled")


def audit(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/audit", policy=options.policy or None, limit=options.limit)


def gateways(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/gateways")


def placements(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/gateways/placements", policy=options.policy, revision=options.revision)


def remove_gateway(client: AdminClient, options: argparse.Namespace) -> Any:
    client.delete(f"/v1/gateways/{quote(options.gateway, safe='')}")


def tokens(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.get("/v1/tokens")


def create_token(client: AdminClient, options: argparse.Namespace) -> Any:
    expires_at = None
    if options.expires_in_days is not None:
        expires_at = (datetime.now(UTC) + timedelta(days=options.expires_in_days)).isoformat()
    body = {
        "name": options.name,
        "scopes": options.scope,
        "policies": options.policy,
        "expires_at": expires_at,
        "max_requests_per_s": options.max_requests_per_s,
        "max_in_flight": options.max_in_flight,
        "max_streams": options.max_streams,
    }
    return client.post("/v1/tokens", body)


def rotate_token(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.post(f"{_token_path(options)}:rotate", {"grace_s": options.grace_s})


def revoke_token(client: AdminClient, options: argparse.Namespace) -> Any:
    return client.post(f"{_token_path(options)}:revoke")


def _followed(client: AdminClient, options: argparse.Namespace, operation: Mapping[str, Any]) -> Any:
    if not options.wait:
        return operation
    return client.follow(operation, _say)


def _say(what: str) -> None:
    print(f"ctl: {what}", file=sys.stderr, flush=True)


def _policy_path(options: argparse.Namespace) -> str:
    return f"{_POLICIES}/{quote(options.policy, safe='')}"


def _revision_path(options: argparse.Namespace) -> str:
    return f"{_policy_path(options)}/revisions/{quote(options.revision, safe='')}"


def _operation_path(options: argparse.Namespace) -> str:
    return f"/v1/operations/{quote(options.operation, safe='')}"


def _token_path(options: argparse.Namespace) -> str:
    return f"/v1/tokens/{quote(options.token, safe='')}"


def _guard_settings(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the flags set; None when they set nothing."""
    names = ("max_error_rate", "max_violation_rate", "max_latency_p95_s", "window_s", "min_requests", "watch_s")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return given or None
