"""What our part of the wire costs, measured on toys: that both servers answer and that the figures fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.bench.wire import WireSettings, format_wire, measure_wire


def test_the_gateway_is_measured_beside_an_echo_of_the_same_bytes(toy_checkpoint: Path) -> None:
    result = measure_wire(WireSettings(checkpoint=toy_checkpoint, rounds=2, calls_per_round=40))
    assert 0 < result["echo_ms"] < result["gateway_ms"]
    assert result["wire_ratio"] == pytest.approx(result["wire_ms"] / result["echo_ms"])
    assert result["request_bytes"] > 1000 < result["response_bytes"] * 100
    assert "times the echo" in format_wire(result)


def test_a_measurement_needs_rounds_and_calls() -> None:
    with pytest.raises(ValueError, match="calls_per_round 0"):
        WireSettings(checkpoint=Path("a"), calls_per_round=0)
