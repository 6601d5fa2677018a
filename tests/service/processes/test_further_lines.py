"""What a further gateway process goes by, there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.credentials import TlsFiles
from service.model_settings import ModelSettings
from service.openpi import ObservationMap
from service.processes.lines import FurtherGatewayConfig

CONFIG = FurtherGatewayConfig(
    process=1,
    gateway_id="cafe",
    host="127.0.0.1",
    port=50051,
    openpi_port=None,
    observation_map=None,
    openpi_policy="",
    registry="sqlite:///state/registry.db",
    cache=Path("state/checkpoints"),
    store=None,
    named=(Path("checkpoints/tabletop"),),
    fence="auto",
    model=ModelSettings(max_batch_size=3, num_gateways=2),
    triton_address="unix:/tmp/http.sock",
    triton_control_address="unix:/tmp/grpc.sock:1",
    triton_repository=Path("/tmp/models"),
    triton_owner="3",
    triton_shares_memory=True,
    tls=None,
    otlp_endpoint="",
    drain_s=1.5,
    load_timeout_s=20.0,
    idle_probe_s=7.0,
    drain_timeout_s=40.0,
    episode_idle_s=30.0,
    log_level=20,
)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(
            CONFIG,
            openpi_port=8000,
            observation_map=ObservationMap(policy="a", images={"front": "image"}, state=("joints", "gripper")),
            openpi_policy="a",
            store=Path("store"),
            tls=TlsFiles(certificate=Path("cert.pem"), key=Path("key.pem"), client_ca=Path("ca.pem")),
        ),
        replace(CONFIG, tls=TlsFiles(certificate=Path("cert.pem"), key=Path("key.pem"))),
    ],
)
def test_a_configuration_comes_over_as_it_was_in_one_line(config: FurtherGatewayConfig) -> None:
    line = config.to_json()
    assert "\n" not in line
    assert FurtherGatewayConfig.from_json(line) == config
