"""Who is signed in, kept in memory: a cookie stands for a token's digest, never for the token.

Owns the cookie's value, the proof that a form came from a page of ours, and the end of a session. Does not own what a
token may do: that is asked anew with every request (credentials/). A restart signs everybody out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

COOKIE = "premotor_session"
SESSION_S = 12 * 3600.0
_MAX_SESSIONS = 1000


@dataclass(frozen=True, kw_only=True)
class Session:
    """`sha256` is that of the token which was shown, as it was then."""

    token_id: str
    sha256: str
    ends_s: float


class Sessions:
    """One per process. For one event loop."""

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._key = secrets.token_bytes(32)
        # The oldest first; all last equally long.
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def new_cookie(self) -> str:
        """For a visitor who has none: stands for nobody, but lets forms be told from other sites'."""
        return self._signed(secrets.token_urlsafe(32))

    def sign_in(self, token_id: str, sha256: str) -> str:
        """The cookie of a new session; what the visitor had before is worth nothing for it."""
        self._forget_ended()
        if len(self._sessions) >= _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        visit = secrets.token_urlsafe(32)
        self._sessions[visit] = Session(token_id=token_id, sha256=sha256, ends_s=self._clock_s() + SESSION_S)
        return self._signed(visit)

    def sign_out(self, cookie: str) -> None:
        self._sessions.pop(cookie.partition(".")[0], None)

    def made(self, cookie: str) -> bool:
        """Whether this process made the cookie, for anybody."""
        return hmac.compare_digest(self._signed(cookie.partition(".")[0]).encode(), cookie.encode())

    def session(self, cookie: str) -> Session | None:
        """None for a visitor who is not signed in, or not any more."""
        if not self.made(cookie):
            return None
        self._forget_ended()
        return self._sessions.get(cookie.partition(".")[0])

    def form_token(self, cookie: str) -> str:
        """What every form on a page for this visitor carries; no other site can know it."""
        return self._mac("form", cookie)

    def _signed(self, visit: str) -> str:
        return f"{visit}.{self._mac('cookie', visit)}"

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()

    def _forget_ended(self) -> None:
        now_s = self._clock_s()
        while self._sessions and next(iter(self._sessions.values())).ends_s <= now_s:
            self._sessions.popitem(last=False)
