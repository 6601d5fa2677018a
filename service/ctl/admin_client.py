"""Calls of the admin plane over HTTP, for the command line and for tests.

Owns the way from a call to its JSON or its error. Does not own what there is to call (admin/).
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_TIMEOUT_S = 30.0
# A stream that broke is taken up again until the admin plane has been away for so long.
_PATIENCE_S = 60.0
_RETRY_S = 1.0


class AdminError(Exception):
    """The admin plane refused, or did not answer. The message is for the operator."""


class AdminAwayError(AdminError):
    """It did not answer, or said that it cannot just now: the same call may be answered later."""


@dataclass(frozen=True, kw_only=True)
class AdminAddress:
    """Where the admin plane is, and what it asks of its callers."""

    url: str
    token_file: Path | None = None
    # The authority that signed its certificate; None takes the system's.
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class AdminClient:
    """One connection; close it, or use it in a `with`."""

    def __init__(
        self,
        address: AdminAddress,
        *,
        transport: httpx.BaseTransport | None = None,
        patience_s: float = _PATIENCE_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        """Raises OSError for a file that cannot be read."""
        self._patience_s, self._retry_s = patience_s, retry_s
        headers = {}
        if address.token_file is not None:
            headers["Authorization"] = f"Bearer {address.token_file.read_text().strip()}"
        verify: ssl.SSLContext | bool = True
        if address.tls_ca is not None or address.tls_cert is not None:
            verify = ssl.create_default_context(cafile=str(address.tls_ca) if address.tls_ca else None)
            if address.tls_cert is not None:
                verify.load_cert_chain(address.tls_cert, address.tls_key)
        self._client = httpx.Client(
            base_url=address.url, headers=headers, verify=verify, timeout=_TIMEOUT_S, transport=transport
        )

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        return self._call("GET", path, params={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._call("POST", path, json=body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("PUT", path, json=body)

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def carry_out(self, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Starts an operation and waits for its end. Raises AdminError when it fails."""
        ended = self.follow(self.post(path, body), lambda step: None)
        if ended["state"] != "succeeded":
            raise AdminError(f"{ended['kind']} {ended['revision']}: {ended['error']}")
        return ended

    def follow(self, operation: Mapping[str, Any], on_step: Callable[[str], None]) -> Mapping[str, Any]:
        """Waits for an operation's end; `on_step` sees each step once. A broken stream is taken up again.

        Raises AdminError once nobody has answered for a minute: the operation goes on all the same.
        """
        last, seen, away_since_s = operation, 0, None
        while True:
            for step in last["steps"][seen:]:
                on_step(step)
            seen = len(last["steps"])
            if last["state"] != "running":
                return last
            try:
                for last in self._events(operation["operation"]):
                    away_since_s = None
                    for step in last["steps"][seen:]:
                        on_step(step)
                    seen = len(last["steps"])
            except AdminAwayError as error:
                away_since_s = away_since_s or time.monotonic()
                if time.monotonic() - away_since_s >= self._patience_s:
                    name = operation["operation"]
                    raise AdminError(f"{error}; `ctl follow {name}` goes on with the operation") from None
            if last["state"] == "running":
                time.sleep(self._retry_s)

    def _events(self, operation_id: str) -> Iterator[Mapping[str, Any]]:
        """Each time it got further, until the stream ends. Raises AdminError."""
        try:
            with self._client.stream("GET", f"/v1/operations/{operation_id}/events") as stream:
                if stream.is_error:
                    stream.read()
                    raise _refusal(stream)
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise self._away(error) from None

    def _call(self, method: str, path: str, **content: Any) -> Any:
        try:
            answer = self._client.request(method, path, **content)
        except httpx.HTTPError as error:
            raise self._away(error) from None
        if answer.is_error:
            raise _refusal(answer)
        return answer.json() if answer.content else None

    def _away(self, error: httpx.HTTPError) -> AdminAwayError:
        return AdminAwayError(f"{self._client.base_url}: {type(error).__name__}: {error}")


def _refusal(answer: httpx.Response) -> AdminError:
    comes_back = answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS
    return (AdminAwayError if comes_back else AdminError)(_problem(answer))


def _problem(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return f"HTTP {answer.status_code}: {answer.text[:200]}"
    if "message" in problem:
        return problem["message"]
    faults = problem.get("detail", problem)
    if isinstance(faults, list):
        return "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in faults)
    return f"HTTP {answer.status_code}: {faults}"
