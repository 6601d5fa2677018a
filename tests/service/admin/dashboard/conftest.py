"""A dashboard on a loopback port, a fleet of one gateway behind it, and a real headless Chromium in front.

The service runs in a thread of its own with its own event loop, as a browser's tests wait for a browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from service.admin import FleetParts, create_admin_app
from service.artifacts import ArtifactStore
from service.backend import BackendChunk, BackendFailedError, BackendRequest
from service.credentials import Credentials, Scope, TokenCache, TokenSpec
from service.credentials.issuing import create_token
from service.gateway import GatewayServer
from service.model_settings import ModelSettings
from service.policies import ServedPolicies
from service.registry import Operation, Registry, open_database
from service.revision import Revision
from service.rollout import Follower, FollowerSettings, Rollout, RolloutSettings

POLICY = "tabletop"
TIMEOUT_S = 10.0


@dataclass
class FakeModels:
    """A LoadingBackend that answers at once; what it is to refuse, or to wait with, is set by revision."""

    answer: Callable[[BackendRequest], Any]
    refusals: dict[str, Exception] = field(default_factory=dict)
    holds: dict[str, asyncio.Event] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    failure: Exception | None = None
    # Revisions that alone fail.
    failing: frozenset[str] = frozenset()

    async def start(self) -> None: ...

    async def load(self, revision: Revision) -> None:
        if revision.revision in self.holds:
            await self.holds[revision.revision].wait()
        if revision.revision in self.refusals:
            raise self.refusals[revision.revision]
        self.loaded.add(revision.revision)

    async def unload(self, revision: str) -> None:
        self.loaded.discard(revision)

    def capacity(self, revision: str) -> int:
        return 8

    async def predict(self, revision: str, request: BackendRequest, *, timeout_s: float) -> BackendChunk:
        if self.failure is not None:
            raise self.failure
        if revision in self.failing:
            raise BackendFailedError("told to fail")
        return BackendChunk(actions=self.answer(request), inference_s=0.02, queue_s=0.003, batch_size=2)

    async def ready(self, revision: str) -> bool:
        return revision in self.loaded

    async def close(self) -> None: ...


class House:
    """One gateway process, less its network, and its admin plane on a port."""

    def __init__(self, root: Path, kit: Any) -> None:
        self.kit = kit
        self.clock_s = 10_000.0
        self._root = root
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="house", daemon=True)
        self._thread.start()
        self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def ask(self, question: Callable[[], Any]) -> Any:
        """Something that is for the house's own thread."""

        async def answer() -> Any:
            return question()

        return self.run(answer())

    def stop(self) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    # What tests start from.

    def registered(self, name: str, *, variant: str = "history", policy: str = POLICY) -> str:
        """A checkpoint of the store, known to the fleet; returns its revision."""
        self.kit.write_checkpoint(self.store / name, variant=variant, config={"model": {"width": 8, "name": name}})
        return self.carried_out(self.rollout.register(policy, name, actor="operator")).revision

    def promoted(self, revision: str, *, policy: str = POLICY) -> None:
        assert self.carried_out(self.rollout.promote(policy, revision, actor="operator")).error == ""

    def carried_out(self, begin: Coroutine[Any, Any, Operation]) -> Operation:
        async def work() -> Operation:
            return await self.rollout.ended((await begin).operation_id)

        return self.run(work())

    def followed(self, page: str) -> Operation:
        """The operation of a page, once it has ended."""
        return self.run(self.rollout.ended(page.rpartition("/")[2]))

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that the house does by itself."""

        async def wait() -> None:
            while not condition():
                self.follower.wake()
                await asyncio.sleep(0.01)

        self.run(wait())

    def answered(self, count: int, *, robot: str = "arm") -> None:
        """Requests of so many robots, each of which gets a chunk, or does not."""

        async def work() -> None:
            for number in range(count):
                request = self.kit.request(request_id=f"{robot}-{number}")
                request.robot_id = f"{robot}-{number}"
                await self.gateway.answerer.answer(request, timeout_s=5.0)

        self.run(work())

    def token(self, *scopes: str, name: str = "somebody", expires_at: datetime | None = None) -> tuple[str, str]:
        """A token's id, and the token. From the first one on, everybody needs one."""
        spec = TokenSpec(name=name, scopes=frozenset(map(Scope, scopes)), expires_at=expires_at)
        record, issued = create_token(self.registry, spec, actor="operator")
        self.tokens.refresh(self.registry)
        return record.token_id, issued.token

    def revoke(self, token_id: str) -> None:
        self.registry.revoke_token(token_id, actor="operator")
        self.tokens.refresh(self.registry)

    def route(self, policy: str = POLICY) -> Any:
        return self.registry.policy(policy).route

    async def _start(self) -> None:
        self.store = self._root / "store"
        self.store.mkdir()
        self.registry = Registry(open_database(f"sqlite:///{self._root}/registry.db"))
        artifacts = ArtifactStore(root=self.store, cache=self._root / "cache")
        self.models = FakeModels(answer=self.kit.expected_actions)
        self.metrics, self.tokens = CollectorRegistry(), TokenCache()
        credentials = Credentials(metrics_registry=self.metrics, tokens=self.tokens)
        self.policies = ServedPolicies()
        self.gateway = GatewayServer(
            policies=self.policies,
            backend=self.models,
            metrics_registry=self.metrics,
            credentials=credentials,
        )
        self.follower = Follower(
            registry=self.registry,
            backend=self.models,
            policies=self.policies,
            artifacts=artifacts,
            model=ModelSettings(),
            gateway_id="a",
            own_process=False,
            settings=FollowerSettings(interval_s=0.05),
        )
        self.rollout = Rollout(
            registry=self.registry,
            follower=self.follower,
            artifacts=artifacts,
            settings=RolloutSettings(poll_interval_s=0.01, gateway_lost_s=5.0, load_timeout_s=10.0),
        )
        port = await self.gateway.start()
        self.follower.address = f"127.0.0.1:{port}"
        self.app = create_admin_app(
            policies=self.policies,
            backend=self.models,
            metrics_registry=self.metrics,
            fleet=FleetParts(registry=self.registry, follower=self.follower, rollout=self.rollout),
            credentials=credentials,
            recent=self.gateway.recent,
            outcomes=self.gateway.outcomes,
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, access_log=False, lifespan="off"))
        self._server.capture_signals = contextlib.nullcontext
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self.follower.start()
        await self.rollout.start()

    async def _stop(self) -> None:
        self._server.should_exit = True
        # Browsers keep connections open.
        self._server.force_exit = True
        await self._task
        await self.rollout.stop()
        await self.follower.stop()
        await self.gateway.stop(0.0)
        self.registry.close()
        self._socket.close()


@pytest.fixture
def house(tmp_path: Path, kit: Any) -> Iterator[House]:
    house = House(tmp_path, kit)
    yield house
    house.stop()


@pytest.fixture
def serving(house: House) -> tuple[str, str]:
    """The revision that serves, and another one that is registered."""
    old, new = house.registered("old", variant="no-prior"), house.registered("new")
    house.promoted(old)
    return old, new


class Visit(httpx.Client):
    """A browser without a screen: keeps its cookies, follows no redirect, fills in forms."""

    PAGES = ("/", "/policies/tabletop", "/operations", "/audit", "/gateways", "/register", "/policies/tabletop/guard")

    def form_token(self, path: str) -> str:
        """What the form on that page carries; also the one to sign in, where that is what comes."""
        return self.form_token_of(self.get(path))

    @staticmethod
    def form_token_of(answer: httpx.Response) -> str:
        return re.search(r'name="form_token" value="([0-9a-f]+)"', answer.text).group(1)

    def send_form(self, path: str, **fields: str) -> httpx.Response:
        """The form on that page."""
        return self.post(path, data={"form_token": self.form_token(path), **fields})

    def sign_in(self, token: str, *, going_to: str = "/") -> httpx.Response:
        return self.send_form("/sign-in", token=token, going_to=going_to)

    def read(self, path: str) -> str:
        return self.text_of(self.get(path))

    @staticmethod
    def text_of(answer: httpx.Response) -> str:
        """What a person reads."""
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text))


@pytest.fixture
def http(house: House) -> Iterator[Visit]:
    with Visit(base_url=house.url, timeout=TIMEOUT_S) as visit:
        yield visit


# For a module at most: while Playwright is there its event loop runs in this thread, and no test can have another.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=[*flags, "--disable-sync", "--no-first-run"], timeout=30_000
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, house: House) -> Iterator[Callable[..., Any]]:
    """Opens a page of the house; what a page logs as an error, or what its policy forbids, fails the test."""
    contexts, faults = [], []

    def opened(path: str = "/", *, width: int = 1100, dark: bool = False, script: bool = True) -> Any:
        context = browser.new_context(
            base_url=house.url,
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT_S)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [fault for fault in faults if "status of 4" not in fault] == []
