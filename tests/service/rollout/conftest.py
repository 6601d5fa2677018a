"""A fleet in one event loop: gateways with backends that do as they are told, on one registry, without gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from service.artifacts import ArtifactLimits, ArtifactStore
from service.backend import BackendChunk, BackendRequest, BackendUnavailableError
from service.episodes import EpisodeTable
from service.gateway.outcomes import Outcomes
from service.model_settings import ModelSettings
from service.policies import ServedPolicies
from service.registry import Operation, OperationState, Registry, RegistryUnavailableError, open_database
from service.revision import Revision
from service.rollout import (
    Follower,
    FollowerSettings,
    LeaseSettings,
    LoadingSettings,
    Rollout,
    RolloutSettings,
)
from service.rollout.tallies import Tallies

PROBE_SHAPE = (16, 4)


@dataclass
class FakeModels:
    """A LoadingBackend: what it is to refuse, and whether it is to wait, is set by revision."""

    refusals: dict[str, Exception] = field(default_factory=dict)
    holds: dict[str, asyncio.Event] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    # What they answer to anything, where it is not what a probe recorded, and until when they keep it to themselves.
    answers: dict[str, float] = field(default_factory=dict)
    answer_holds: dict[str, asyncio.Event] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)

    async def start(self) -> None: ...

    async def load(self, revision: Revision) -> None:
        self.calls.append(("load", revision.revision))
        if revision.revision in self.holds:
            await self.holds[revision.revision].wait()
        if revision.revision in self.refusals:
            raise self.refusals[revision.revision]
        self.loaded.add(revision.revision)

    async def unload(self, revision: str) -> None:
        self.calls.append(("unload", revision))
        self.loaded.discard(revision)

    def capacity(self, revision: str) -> int:
        return 1

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        self.calls.append(("predict", revision))
        if revision in self.answer_holds:
            await self.answer_holds[revision].wait()
        if revision not in self.loaded:
            raise BackendUnavailableError(f"{revision} is not loaded")
        actions = np.full(PROBE_SHAPE, self.answers.get(revision, 0.0), np.float32)
        return BackendChunk(actions=actions, inference_s=0.001, queue_s=0.0)

    async def ready(self, revision: str) -> bool:
        return revision in self.loaded

    async def close(self) -> None: ...


@dataclass
class Process:
    """One gateway process, less its network."""

    registry: Registry
    models: FakeModels
    policies: ServedPolicies
    follower: Follower
    rollout: Rollout
    outcomes: Outcomes
    now_s: list[float]
    stopped: bool = False
    # The registry's methods that do not answer.
    lost: set[str] = field(default_factory=set)

    async def start(self) -> None:
        await self.follower.start()
        await self.rollout.start()

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.rollout.stop()
            await self.follower.stop()

    async def crash(self) -> None:
        """Ends without leaving the fleet."""
        self.stopped = True
        await self.rollout.stop()
        assert self.follower._task is not None
        self.follower._task.cancel()
        self.follower._lease.stop()

    async def carried_out(self, beginning: Awaitable[Operation]) -> Operation:
        """Waits for the end of an operation, which is to succeed."""
        ended = await self.rollout.ended((await beginning).operation_id)
        assert ended.state is OperationState.SUCCEEDED, ended.error
        return ended

    async def registered(self, location: str, *, policy: str = "tabletop") -> str:
        """The revision of the checkpoint at `location`, which the policy has from now on."""
        return (await self.carried_out(self.rollout.register(policy, location, actor="ada"))).revision

    def lose_registry(self, *more: str) -> None:
        """What a follower asks of it is not answered any more, nor are `more` of its methods."""

        def away(*_arguments, **_options):
            raise RegistryUnavailableError("the network is gone")

        self.lost |= {"generation", "beat", "touch", "fleet", *more}
        for name in self.lost:
            setattr(self.registry, name, away)

    def regain_registry(self) -> None:
        for name in self.lost:
            delattr(self.registry, name)
        self.lost.clear()

    async def look_at_drains(self) -> None:
        """Returns once tending has looked at what drains, and has had time to end it."""
        asked, ask = [], self.registry.placements

        def counted(policy: str, revision: str):
            asked.append(revision)
            return ask(policy, revision)

        self.registry.placements = counted
        await self.until(lambda: len(asked) > 2)
        self.registry.placements = ask

    async def until(self, condition) -> None:
        """Waits for something that the process does by itself."""
        async with asyncio.timeout(10):
            while not condition():
                self.follower.wake()
                await asyncio.sleep(0.01)


class FleetKit:
    def __init__(self, root: Path, write_checkpoint, url: str = "") -> None:
        self.url = url or f"sqlite:///{root}/registry.db"
        self.store = root / "store"
        self.store.mkdir()
        self._write_checkpoint = write_checkpoint
        self._root = root
        self.processes: list[Process] = []

    def checkpoint(self, name: str, **changes) -> str:
        """A checkpoint in the store; returns its location."""
        self._write_checkpoint(self.store / name, **changes)
        return name

    def probed_checkpoint(self, name: str, **changes) -> str:
        """One whose probe can be read: zeros are what it expects."""
        directory = self.store / self.checkpoint(name, **changes)
        probe = {
            "num_requests": 1,
            "0/embodiment": "sawyer",
            "0/images/corner": np.zeros((96, 96, 3), np.uint8),
            "0/state": np.zeros(4, np.float32),
            "0/instruction": "lift the cube",
            "0/seed": 7,
            "0/num_inference_steps": 5,
            "0/expected": np.zeros(PROBE_SHAPE, np.float32),
        }
        np.savez(directory / "probe.npz", **probe)
        content = (directory / "probe.npz").read_bytes()
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["files"]["probe.npz"] = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return name

    def process(
        self,
        name: str,
        *,
        models: FakeModels | None = None,
        lease: LeaseSettings | None = None,
        follower_settings: FollowerSettings | None = None,
        retry_s: float = 0.05,
        now=lambda: datetime.now(UTC),
        cache: str = "cache",
        episode_idle_s: float = 60.0,
        **settings,
    ) -> Process:
        registry = Registry(open_database(self.url))
        # Nothing here goes over a network.
        limits = ArtifactLimits(schemes=("memory",))
        artifacts = ArtifactStore(root=self.store, cache=self._root / cache, limits=limits)
        now_s = [0.0]
        policies = ServedPolicies(episodes=EpisodeTable(idle_s=episode_idle_s, now_s=lambda: now_s[0]))
        models, outcomes = models or FakeModels(), Outcomes()
        follower = Follower(
            registry=registry,
            backend=models,
            policies=policies,
            artifacts=artifacts,
            model=ModelSettings(),
            gateway_id=name,
            own_process=False,
            tallies=Tallies(outcomes),
            settings=follower_settings
            or FollowerSettings(
                interval_s=0.05,
                beat_s=0.1,
                lease=lease or LeaseSettings(),
                loading=LoadingSettings(first_retry_s=retry_s, last_retry_s=retry_s),
            ),
        )
        defaults = {"poll_interval_s": 0.01, "gateway_lost_s": 2.0, "load_timeout_s": 10.0}
        rollout = Rollout(
            registry=registry,
            follower=follower,
            artifacts=artifacts,
            settings=RolloutSettings(**(defaults | settings)),
            now=now,
        )
        process = Process(registry, models, policies, follower, rollout, outcomes, now_s)
        self.processes.append(process)
        return process


@pytest.fixture
async def postgres_fleet(tmp_path: Path, kit, postgres) -> AsyncIterator[FleetKit]:
    made = FleetKit(tmp_path, kit.write_checkpoint, postgres())
    yield made
    for process in made.processes:
        await process.stop()
        process.registry.close()


@pytest.fixture
async def fleet(tmp_path: Path, kit) -> AsyncIterator[FleetKit]:
    made = FleetKit(tmp_path, kit.write_checkpoint)
    yield made
    for process in made.processes:
        await process.stop()
        process.registry.close()
