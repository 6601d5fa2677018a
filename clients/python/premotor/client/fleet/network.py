"""What a network does to bytes: the arithmetic of delay, rate and loss.

Owns the profiles and when a piece of a byte stream arrives. Does no I/O and reads no clock (proxy.py does both).

A link is simulated as a TCP connection sees it: bytes arrive late, never out of order and never not at all. A lost
segment costs the time until it has been sent again, and everything behind it on its connection waits. The congestion
window is not simulated: a loss does not slow down what is sent later.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

SEGMENT_BYTES = 1448
# Linux never waits less for an acknowledgement before it sends again (TCP_RTO_MIN).
MIN_RETRANSMISSION_S = 0.2
# A loss shows by three acknowledgements of later segments; among the last three of a message only a timeout shows it.
_TAIL_SEGMENTS = 3
# After this many sendings of one segment its delay is no longer a matter of chance.
_MOST_SENDINGS = 8


@dataclass(frozen=True, kw_only=True)
class NetworkProfile:
    """One link that all robots share.

    `delay_s` is one way; every piece of a stream is late by another value within `jitter_s` of it, evenly drawn.
    `rate_bits_per_s` is what goes through in each direction, infinity where nothing limits it. `loss` is the mean share
    of segments that are lost, in bursts of `loss_burst_segments` on average; 1 is one by one.
    """

    name: str
    delay_s: float
    jitter_s: float = 0.0
    rate_bits_per_s: float = math.inf
    loss: float = 0.0
    loss_burst_segments: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.jitter_s <= self.delay_s:
            raise ValueError(f"jitter_s is {self.jitter_s}, expected 0 to delay_s, {self.delay_s}")
        if not 0 <= self.loss <= 0.5 or self.loss_burst_segments < 1 or not self.rate_bits_per_s > 0:
            raise ValueError(
                f"loss {self.loss}, bursts of {self.loss_burst_segments} segments and {self.rate_bits_per_s} bits a "
                "second came, expected 0 to 0.5, at least 1 and more than 0"
            )

    @property
    def retransmission_s(self) -> float:
        """How long a sender waits for an acknowledgement before it sends again."""
        return max(MIN_RETRANSMISSION_S, 2 * (self.delay_s + self.jitter_s))


# A cable and a switch or two.
LAN = NetworkProfile(name="lan", delay_s=0.0002, rate_bits_per_s=1e9)
# A hall with one access point: what its own link layer could not repair is lost, a spike of neighbours at a time.
WIFI = NetworkProfile(
    name="wifi", delay_s=0.003, jitter_s=0.002, rate_bits_per_s=100e6, loss=0.01, loss_burst_segments=20.0
)
# A site with one line to a data centre some 2,500 km away.
WAN = NetworkProfile(name="wan", delay_s=0.040, jitter_s=0.005, rate_bits_per_s=20e6)
# No shaping at all; with faults there is a proxy on the way all the same, which costs some tenths of a millisecond.
NONE = NetworkProfile(name="none", delay_s=0.0)
PROFILES = {profile.name: profile for profile in (NONE, LAN, WIFI, WAN)}


class Link:
    """One direction of a link, shared by all its connections."""

    def __init__(self, profile: NetworkProfile, rng: random.Random) -> None:
        self._profile = profile
        self._rng = rng
        self._free_s = 0.0
        self._losing = False
        # Of a fault, on top of the profile's; one by one.
        self.extra_loss = 0.0

    def arrival_s(self, num_bytes: int, sent_s: float, *, not_before_s: float = 0.0) -> float:
        """When a piece that is sent at `sent_s` has arrived whole; never before `not_before_s`, which what was sent
        earlier on its connection reached."""
        profile = self._profile
        self._free_s = max(self._free_s, sent_s) + 8 * num_bytes / profile.rate_bits_per_s
        delay_s = profile.delay_s + self._rng.uniform(-profile.jitter_s, profile.jitter_s)
        return max(self._free_s + delay_s + self._loss_s(num_bytes), not_before_s)

    def _loss_s(self, num_bytes: int) -> float:
        """How much later the last of its lost segments is there than the piece would have been."""
        if self._profile.loss == 0 and self.extra_loss == 0:
            return 0.0
        num_segments = max(1, math.ceil(num_bytes / SEGMENT_BYTES))
        worst_s = 0.0
        for segment in range(num_segments):
            if self._loses():
                tail = num_segments - segment <= _TAIL_SEGMENTS
                worst_s = max(worst_s, self._resent_s(tail))
        return worst_s

    def _resent_s(self, tail: bool) -> float:
        """Found by later acknowledgements after a round trip, else by a timeout, which doubles each time.

        By then the burst is over: what is sent again is lost with the mean probability.
        """
        profile = self._profile
        waited_s = profile.retransmission_s if tail else 2 * profile.delay_s
        timeout_s = profile.retransmission_s
        for _ in range(_MOST_SENDINGS):
            if self._rng.random() >= profile.loss + self.extra_loss:
                break
            waited_s += timeout_s
            timeout_s *= 2
        return waited_s

    def _loses(self) -> bool:
        """Gilbert's two states: in the bad one every segment is lost."""
        profile = self._profile
        if profile.loss > 0:
            # Leaving and entering so that the bad state lasts the burst and takes `loss` of all segments.
            leave = 1 / profile.loss_burst_segments
            enter = leave * profile.loss / (1 - profile.loss)
            self._losing = self._rng.random() < (1 - leave if self._losing else enter)
        return self._losing or self._rng.random() < self.extra_loss


def resumed_s(sent_s: float, end_s: float, retransmission_s: float) -> float:
    """When what was sent into a dead link at `sent_s` is sent again with success, the link being back at `end_s`.

    The timeout doubles with every vain attempt: after a long cut a connection finds out late that it is over.
    """
    again_s, timeout_s = sent_s, retransmission_s
    while again_s < end_s:
        again_s += timeout_s
        timeout_s *= 2
    return again_s
