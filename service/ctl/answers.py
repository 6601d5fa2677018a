"""What the admin plane answered, as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def format_answer(answer: Any) -> str | None:
    """A table, or a line; None when there is nothing to say."""
    if answer is None:
        return None
    if "token" in answer:
        return answer["token"]
    # Before policies, which a token has as well.
    if "token_id" in answer:
        return _table([answer], _COLUMNS["tokens"])
    if "policies" in answer:
        return "\n\n".join(_format_policy(policy) for policy in answer["policies"]) or "no policy is registered"
    if "stable" in answer:
        return _format_policy(answer)
    for key in ("operations", "entries", "gateways", "placements", "tokens"):
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
    "placements": ("gateway", "state", "num_in_progress", "error"),
    "tokens": ("token_id", "name", "scopes", "policies", "expires_at", "revoked_at"),
}


def _format_policy(policy: Mapping[str, Any]) -> str:
    shadow = f", shadow {policy['shadow']['revision']} ({policy['shadow']['share']:.0%})" if policy["shadow"] else ""
    rows = [{**row, "share": f"{row['share']:.0%}" if row["share"] else ""} for row in policy["revisions"]]
    serving = policy["stable"] or "nothing"
    return f"{policy['name']}: serves {serving}{shadow}\n{_table(rows, _COLUMNS['revisions'])}"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def is_failure(answer: Any) -> bool:
    return isinstance(answer, dict) and "operation" in answer and answer["state"] == "failed"
