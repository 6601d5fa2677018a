"""Whether a robot may connect and ask, judged by the `Authorization` header that openpi's client sends with its key.

Owns the questions. Does not own credentials: whoever keeps those answers them, from memory and at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from service.credentials import Access, Scope


class Authenticator(Protocol):
    """`authorization` has all values of the header, none when there is none; the key follows `Api-Key `.

    All raise AuthenticationError, NotAllowedError or OverloadedError, in messages that repeat nothing of the header.
    """

    def policies(self, authorization: Sequence[str]) -> Sequence[str]:
        """Those that the key is for, empty for all: asked first, of robots that do not say which they ask."""
        ...

    def connection(self, authorization: Sequence[str], policy: str) -> AbstractContextManager[None]:
        """Asked before the handshake; held while the connection lasts."""
        ...

    def request(self, authorization: Sequence[str], policy: str) -> AbstractContextManager[str]:
        """Asked anew for each frame, so that a key ends where it is revoked; held until the reply is made.

        Gives the holder of the key, empty for nobody: robots of two holders are two, whatever ids they name.
        """
        ...

    def still_counts(self, authorization: Sequence[str]) -> None:
        """Asked while a robot says nothing. Raises AuthenticationError once the key has ended."""
        ...


class OpenAccess:
    """Lets everybody in: for a service that has no credentials, which listens on loopback."""

    def policies(self, authorization: Sequence[str]) -> Sequence[str]:
        return ()

    def connection(self, authorization: Sequence[str], policy: str) -> AbstractContextManager[None]:
        return nullcontext()

    def request(self, authorization: Sequence[str], policy: str) -> AbstractContextManager[str]:
        return nullcontext("")

    def still_counts(self, authorization: Sequence[str]) -> None: ...


class TokenAuthenticator:
    """The service's own tokens as keys: scope infer, for the policy. A connection counts as a stream of its token."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def policies(self, authorization: Sequence[str]) -> Sequence[str]:
        caller = self._access.caller(authorization)
        self._access.require(caller, (Scope.INFER,))
        return caller.token.policies if caller.token is not None else ()

    @contextmanager
    def connection(self, authorization: Sequence[str], policy: str) -> Iterator[None]:
        caller = self._access.caller(authorization)
        self._access.require(caller, (Scope.INFER,), policy=policy)
        with self._access.stream(caller):
            yield

    @contextmanager
    def request(self, authorization: Sequence[str], policy: str) -> Iterator[str]:
        caller = self._access.caller(authorization)
        self._access.require(caller, (Scope.INFER,), policy=policy)
        with self._access.request(caller):
            yield caller.token.token_id if caller.token is not None else ""

    def still_counts(self, authorization: Sequence[str]) -> None:
        self._access.caller(authorization)
