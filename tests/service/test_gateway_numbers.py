"""Numbers that the gateway takes are numbers that a model can compute with, and no revision is blamed for others."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from policy.policy import Policy
from policy.request import RealTimeChunking
from premotor.wire import encode_tensor
from service.gateway import GatewayLimits

MOST = GatewayLimits().max_abs_value
TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def narrow(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Trained on actions of the smallest range that is stretched at all, which makes the most of a number."""
    checkpoint = Path(shutil.copytree(toy_checkpoint, tmp_path_factory.mktemp("narrow") / "copy"))
    embodiments = json.loads((checkpoint / "embodiments.json").read_text())
    for entry in embodiments["embodiments"]:
        for side in entry["statistics"].values():
            side |= {name: [sign * 1.001e-4] * len(side[name]) for name, sign in (("min", -1), ("max", 1))}
    (checkpoint / "embodiments.json").write_text(json.dumps(embodiments))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / "embodiments.json").read_bytes()
    manifest["files"]["embodiments.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return Policy.from_checkpoint(checkpoint, verify_probe=False)


@pytest.mark.parametrize("num_inference_steps", [1, 2, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_that_are_taken_give_finite_chunks(
    narrow: Policy, make_toy_request, num_inference_steps: int, sign: int
) -> None:
    for spec in narrow.embodiments.values():
        plain = make_toy_request(spec, seed=3, num_history_steps=3)
        signs = sign * (-1.0) ** torch.arange(4)[:, None]
        largest = replace(
            plain,
            state=torch.full_like(plain.state, sign * MOST),
            history_states=torch.full_like(plain.history_states, -sign * MOST),
            history_actions=torch.full_like(plain.history_actions, -sign * MOST),
            num_inference_steps=num_inference_steps,
        )
        guided = replace(
            largest,
            real_time_chunking=RealTimeChunking(
                previous_actions=signs.expand(4, spec.action_dim) * MOST,
                inference_delay=2,
                execution_horizon=1,
                method="guidance",
                max_guidance_weight=100.0,
            ),
        )
        for chunk in narrow.predict_chunk([largest, guided]):
            assert torch.isfinite(chunk).all()


def test_numbers_as_large_as_they_go_do_not(narrow: Policy, make_toy_request) -> None:
    plain = make_toy_request(narrow.embodiments["arm"], seed=3, num_history_steps=3)
    unfilled = replace(plain, history_actions=torch.full_like(plain.history_actions, 3e38))
    assert torch.isnan(narrow.predict_chunk([unfilled])[0]).any()


async def test_a_robot_that_sends_an_unfilled_buffer_is_refused_and_costs_its_revision_nothing(kit) -> None:
    def overflow(request) -> np.ndarray:
        spoilt = np.abs(request.history_actions).max() > MOST
        return np.full((kit.action_horizon, kit.panda.action_dim), np.nan if spoilt else 0.0, np.float32)

    async with kit.serve(backend=kit.backend(make_actions=overflow)) as gateway:
        request = kit.request()
        request.history.actions.CopyFrom(encode_tensor(np.full((3, 8), 3e38, np.float32)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.stub.PredictChunk(request, timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await asyncio.wait_for(gateway.stub.PredictChunk(kit.request()), TIMEOUT_S)
        record = gateway.server.outcomes.record(kit.policy, kit.revision.revision, since_s=0.0, window_s=60.0)
    assert (record.num_requests, record.violation_rate, record.error_rate) == (1, 0.0, 0.0)
