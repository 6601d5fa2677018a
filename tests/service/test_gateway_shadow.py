"""A shadow is asked as well and changes no answer; how far it is off is said, and a robot never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.backend import BackendChunk, BackendFailedError, BackendRequest
from service.gateway.shadow import ShadowTraffic
from service.policies import ServedPolicies, ServedPolicy
from service.registry import Shadow
from service.revision import Revision, read_revision

POLICY = "tabletop"


class TwoModels:
    """A backend whose shadow does as it is told."""

    def __init__(self, shadow: str, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        self.shadow, self.answer = shadow, answer
        self.asked: list[str] = []
        self.hold: asyncio.Event | None = None
        self.failure: Exception | None = None

    def capacity(self, revision: str) -> int:
        return 16

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        self.asked.append(revision)
        # Different from request to request, as a robot's actions are.
        actions = np.sin(np.arange(16 * 8, dtype=np.float32) + request.seed).reshape(16, 8)
        if revision == self.shadow:
            if self.hold is not None:
                await self.hold.wait()
            if self.failure is not None:
                raise self.failure
            actions = self.answer(actions)
        return BackendChunk(actions=actions, inference_s=0.001, queue_s=0.0)

    async def ready(self, revision: str) -> bool:
        return True

    async def close(self) -> None: ...


@pytest.fixture
def other(kit, tmp_path) -> Revision:
    return read_revision(kit.write_checkpoint(tmp_path / "other", variant="state-prior"), policy=POLICY)


@pytest.fixture
def policies(kit, other, monkeypatch) -> ServedPolicies:
    served = ServedPolicy(
        revisions={each.revision: each for each in (kit.revision, other)},
        shares=((kit.revision.revision, 1.0),),
        shadow=Shadow(revision=other.revision, share=1.0),
    )
    monkeypatch.setattr(kit, "policies", ServedPolicies({POLICY: served}))
    return kit.policies


def identical(actions: np.ndarray) -> np.ndarray:
    return actions


async def ask(kit, gateway, count: int) -> list[bytes]:
    answers = []
    for number in range(count):
        response = await gateway.stub.PredictChunk(kit.request(request_id=str(number), seed=number), timeout=10)
        assert response.revision == kit.revision.revision
        answers.append(response.actions.data)
    return answers


def sample(gateway, name: str, revision: Revision, **labels: str) -> float | None:
    return gateway.registry.get_sample_value(name, {"policy": POLICY, "revision": revision.revision, **labels})


def fields_of(caplog, event: str) -> list[dict]:
    return [record.fields for record in caplog.records if record.message == event]


async def settled(gateway) -> None:
    await gateway.server._shadow.settled()


@pytest.mark.parametrize(
    ("answer", "ratio"), [(identical, (0.0, 0.0)), (lambda a: a + 0.01, (0.005, 0.1)), (lambda a: -5 * a, (2.0, 100.0))]
)
async def test_a_shadow_changes_no_answer_and_its_distance_is_published(kit, policies, other, answer, ratio):
    backend = TwoModels(other.revision, answer)
    async with kit.serve(backend=backend) as gateway:
        with_shadow = await ask(kit, gateway, 30)
        await settled(gateway)
        assert backend.asked.count(other.revision) == 30
        assert sample(gateway, "premotor_shadow_requests_total", other, outcome="answered") == 30
        low, high = ratio
        assert low <= sample(gateway, "premotor_shadow_divergence_ratio", other) <= high
        divergence = sample(
            gateway, "premotor_shadow_divergence_sum", other, embodiment="panda", group="arm", unit="rad"
        )
        assert (divergence == 0.0) is (answer is identical)
    policies.apply(
        {POLICY: ServedPolicy(revisions={kit.revision.revision: kit.revision}, shares=((kit.revision.revision, 1.0),))}
    )
    async with kit.serve(backend=backend) as gateway:
        assert await ask(kit, gateway, 30) == with_shadow


async def test_a_shadow_that_hangs_keeps_no_robot_waiting_and_its_surplus_is_dropped(kit, policies, other):
    backend = TwoModels(other.revision, identical)
    backend.hold = asyncio.Event()
    async with kit.serve(backend=backend) as gateway:
        async with asyncio.timeout(20):
            await ask(kit, gateway, 40)
        assert backend.asked.count(other.revision) == 1
        assert sample(gateway, "premotor_shadow_requests_total", other, outcome="dropped") == 40 - 1 - 16
        backend.hold.set()
        await settled(gateway)
        assert sample(gateway, "premotor_shadow_requests_total", other, outcome="answered") == 17


@pytest.mark.parametrize("how", ["fails", "answers NaN", "answers another shape"])
async def test_a_broken_shadow_is_counted_and_said_to_fail(kit, policies, other, how, caplog):
    answers = {
        "fails": identical,
        "answers NaN": lambda actions: np.full_like(actions, np.nan),
        "answers another shape": lambda actions: actions[:3],
    }
    backend = TwoModels(other.revision, answers[how])
    backend.failure = BackendFailedError("broken") if how == "fails" else None
    async with kit.serve(backend=backend) as gateway:
        await ask(kit, gateway, 25)
        await settled(gateway)
        outcome = "failed" if how == "fails" else "invalid"
        assert sample(gateway, "premotor_shadow_requests_total", other, outcome=outcome) == 25
        (alarm,) = fields_of(caplog, "shadow fails")
        assert (alarm["policy"], alarm["revision"], alarm["outcome"]) == (POLICY, other.revision, outcome)
        assert alarm["ratio"] == 1.0 and alarm["error"]
        if how != "fails":
            assert sample(gateway, "premotor_shadow_divergence_ratio", other) == float("inf")
            assert [each["ratio"] for each in fields_of(caplog, "shadow diverges")] == ["inf"]


async def test_a_shadow_that_fails_now_and_then_is_said_to_fail_above_a_share_and_again_after_it_was_well(
    kit, policies, other, caplog
):
    backend = TwoModels(other.revision, identical)

    async def fail(gateway, count: int) -> int:
        """How often it has been said in all."""
        backend.failure = BackendFailedError("out of memory") if count else None
        await ask(kit, gateway, count or 200)
        await settled(gateway)
        backend.failure = None
        await ask(kit, gateway, 1)
        await settled(gateway)
        return len(fields_of(caplog, "shadow fails"))

    async with kit.serve(backend=backend) as gateway:
        assert await fail(gateway, 0) == 0
        assert await fail(gateway, 2) == 0
        assert await fail(gateway, 2) == 1
        assert await fail(gateway, 4) == 1
        assert await fail(gateway, 0) == 1
        assert await fail(gateway, 4) == 2
    assert {each["outcome"] for each in fields_of(caplog, "shadow fails")} == {"failed"}


async def test_a_shadow_that_reads_requests_otherwise_is_not_asked_and_that_is_said(kit, tmp_path, caplog):
    changed = read_revision(kit.write_checkpoint(tmp_path / "changed", config={"history_steps": 4}), policy=POLICY)
    backend, registry = TwoModels(changed.revision, identical), CollectorRegistry()
    traffic = ShadowTraffic(backend=backend, metrics_registry=registry, shadowed=lambda: {(POLICY, changed.revision)})
    traffic.start()
    embodiment = kit.revision.description.embodiments[1]
    served = BackendChunk(actions=np.zeros((16, 8), np.float32), inference_s=0.0, queue_s=0.0)
    for _ in range(20):
        traffic.offer(
            POLICY, Shadow(revision=changed.revision, share=1.0), (kit.revision, changed), embodiment, None, served
        )
        # One that serves is no shadow of itself.
        traffic.offer(
            POLICY, Shadow(revision=kit.revision.revision, share=1.0), (kit.revision,) * 2, embodiment, None, served
        )
    await traffic.settled()
    await traffic.stop()
    assert backend.asked == []
    counted = {
        (sample.labels["revision"], sample.labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "premotor_shadow_requests_total"
    }
    assert counted == {(changed.revision, "other_schema"): 20}
    (alarm,) = fields_of(caplog, "shadow fails")
    assert alarm["error"] == f"its schema is not that of {kit.revision.revision}, which serves"


async def test_a_shadow_that_hangs_costs_another_policys_shadow_nothing_and_both_are_forgotten_with_their_routes(
    kit, other, tmp_path
):
    hanging, well = other, read_revision(kit.write_checkpoint(tmp_path / "well", variant="no-prior"), policy=POLICY)
    backend, registry = TwoModels(hanging.revision, identical), CollectorRegistry()
    backend.hold = asyncio.Event()
    shadowed = {("a", hanging.revision), ("b", well.revision)}
    traffic = ShadowTraffic(backend=backend, metrics_registry=registry, shadowed=lambda: shadowed)
    request = BackendRequest(
        embodiment_index=1,
        images=(),
        state=np.zeros(9, np.float32),
        instruction="",
        history_states=np.zeros((0, 9), np.float32),
        history_actions=np.zeros((0, 8), np.float32),
        seed=1,
        num_inference_steps=1,
    )
    served = await backend.predict(kit.revision.revision, request, timeout_s=1)

    def offer(policy: str, revision: Revision) -> None:
        shadow, embodiment = Shadow(revision=revision.revision, share=1.0), kit.revision.description.embodiments[1]
        traffic.offer(policy, shadow, (kit.revision, revision), embodiment, request, served)

    def outcomes(policy: str) -> dict[str, float]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        ours = [sample for sample in samples if sample.labels["policy"] == policy]
        counted = {each.labels["outcome"]: each.value for each in ours if each.name == "premotor_shadow_requests_total"}
        assert counted or not ours
        return counted

    async def until(policy: str, expected: dict[str, float]) -> None:
        async with asyncio.timeout(10):
            while outcomes(policy) != expected:  # noqa: ASYNC110  # only the metrics tell
                await asyncio.sleep(0.01)

    traffic.start()
    for _ in range(30):
        offer("a", hanging)
    for _ in range(10):
        offer("b", well)
    assert outcomes("a") == {"dropped": 14}
    await until("b", {"answered": 10})
    shadowed.clear()
    await until("a", {})
    await until("b", {})
    # It is one again, and nothing is held against it.
    shadowed.add(("b", well.revision))
    offer("b", well)
    await until("b", {"answered": 1})
    await traffic.stop()
    offer("b", well)
    assert outcomes("b") == {"answered": 1}
