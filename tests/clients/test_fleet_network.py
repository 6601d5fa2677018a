"""What a link does to bytes: late, in order, never lost."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from premotor.client.fleet.network import LAN, MIN_RETRANSMISSION_S, NONE, WAN, WIFI, Link, NetworkProfile, resumed_s


def test_a_link_without_shaping_delays_nothing() -> None:
    assert Link(NONE, random.Random(0)).arrival_s(10_000_000, 5.0) == 5.0


@pytest.mark.parametrize("profile", [LAN, WIFI, WAN], ids=lambda profile: profile.name)
def test_nothing_arrives_before_delay_and_rate_allow(profile: NetworkProfile) -> None:
    link = Link(profile, random.Random(0))
    for number in range(200):
        sent_s = 10.0 * number
        earliest_s = profile.delay_s - profile.jitter_s + 8 * 30_000 / profile.rate_bits_per_s
        assert link.arrival_s(30_000, sent_s) >= sent_s + earliest_s - 1e-9


def test_all_connections_share_the_rate_of_a_link() -> None:
    link = Link(NetworkProfile(name="narrow", delay_s=0.0, rate_bits_per_s=8e6), random.Random(0))
    assert [link.arrival_s(1_000_000, 0.0) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_piece_never_overtakes_the_one_before_it_on_its_connection() -> None:
    link = Link(WIFI, random.Random(0))
    arrivals = [0.0]
    for number in range(2000):
        arrivals.append(link.arrival_s(1448, 0.001 * number, not_before_s=arrivals[-1]))
    assert all(later >= earlier for earlier, later in pairwise(arrivals))


@pytest.mark.parametrize("loss", [0.01, 0.1])
@pytest.mark.parametrize("burst", [1.0, 20.0])
def test_the_share_of_lost_segments_is_the_one_asked_for(loss: float, burst: float) -> None:
    profile = NetworkProfile(name="lossy", delay_s=0.0, loss=loss, loss_burst_segments=burst)
    link = Link(profile, random.Random(1))
    late = sum(link.arrival_s(1448, float(number)) > number for number in range(200_000))
    assert late / 200_000 == pytest.approx(loss, rel=0.15)


def test_a_lost_last_segment_costs_a_timeout_and_one_in_the_middle_a_round_trip() -> None:
    class LosesOnce(random.Random):
        def __init__(self, position: int) -> None:
            super().__init__(0)
            self._calls, self._position = 0, position

        def random(self) -> float:
            self._calls += 1
            return 0.0 if self._calls == self._position else 0.999

        def uniform(self, a: float, b: float) -> float:
            return 0.0

    profile = NetworkProfile(name="plain", delay_s=0.040)
    for position, waited_s in ((1, 0.080), (100, MIN_RETRANSMISSION_S)):
        link = Link(profile, LosesOnce(position))
        link.extra_loss = 0.02
        assert link.arrival_s(100 * 1448, 0.0) == pytest.approx(0.040 + waited_s)


def test_after_a_long_cut_a_sender_finds_out_late_that_it_is_over() -> None:
    assert resumed_s(0.0, 5.0, 0.2) == pytest.approx(0.2 * (1 + 2 + 4 + 8 + 16))
    assert resumed_s(4.9, 5.0, 0.2) == pytest.approx(5.1)


@pytest.mark.parametrize(
    "wrong", [{"jitter_s": 1.0}, {"loss": 0.9}, {"loss_burst_segments": 0.5}, {"rate_bits_per_s": 0.0}]
)
def test_a_profile_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        NetworkProfile(**{"name": "x", "delay_s": 0.01, **wrong})
    assert math.isinf(NONE.rate_bits_per_s)
