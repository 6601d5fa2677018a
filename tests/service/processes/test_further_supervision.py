"""Further gateway processes and who keeps them: real processes that do as they are told, without a gateway in them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.model_settings import ModelSettings
from service.processes.lines import FurtherGatewayConfig
from service.processes.supervision import (
    FurtherGatewayError,
    FurtherGateways,
    FurtherGatewaySettings,
    check_nobody_listens,
)

QUICK = FurtherGatewaySettings(
    start_timeout_s=10.0,
    alive_interval_s=0.05,
    alive_timeout_s=0.5,
    metrics_timeout_s=0.5,
    first_backoff_s=0.05,
    last_backoff_s=0.1,
    end_timeout_s=0.5,
)
# Tells its pid as a metric, is ready, and answers until its stdin ends.
ANSWERS = """
import json, os, sys
config = json.loads(sys.stdin.readline())
def tell(line):
    print(json.dumps(line), flush=True)
BEGIN
tell({"event": "ready"})
for line in sys.stdin:
    question = json.loads(line)
    HEAR
    samples = [["pid", {}, os.getpid(), None]]
    pid = {"name": "pid", "documentation": "", "type": "gauge", "unit": "", "samples": samples}
    tell({"id": question["id"], "metrics": [pid]})
END
"""


def program(begin: str = "", hear: str = "", end: str = "") -> tuple[str, ...]:
    text = ANSWERS.replace("BEGIN", begin).replace("HEAR", hear).replace("END", end)
    return (sys.executable, "-I", "-c", text)


class Kept:
    """Further gateways, and what was told of them."""

    def __init__(self, number: int, command: tuple[str, ...], settings: FurtherGatewaySettings) -> None:
        self.began: list[str] = []
        self.left: list[str] = []
        self.dead: list[str] = []
        self.gateways = FurtherGateways(
            number, self._config, left=self._left, model_dead=self.dead.append, settings=settings, command=command
        )

    async def pids(self) -> dict[int, int]:
        told = await self.gateways.metrics()
        return {number: int(families[0].samples[0].value) for number, families in told.items() if families}

    def _config(self, process: int, gateway_id: str) -> FurtherGatewayConfig:
        self.began.append(gateway_id)
        return _config(process, gateway_id)

    async def _left(self, gateway_id: str) -> None:
        self.left.append(gateway_id)


@asynccontextmanager
async def kept(
    number: int = 1, command: tuple[str, ...] | None = None, settings: FurtherGatewaySettings = QUICK
) -> AsyncIterator[Kept]:
    made = Kept(number, command or program(), settings)
    try:
        yield made
    finally:
        await made.gateways.stop(0.0)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  # no event crosses processes
            await asyncio.sleep(0.01)


async def another_pid(kept: Kept, pid: int) -> int:
    async with asyncio.timeout(10):
        while True:
            if (now := (await kept.pids()).get(1, pid)) != pid:
                return now
            await asyncio.sleep(0.01)


async def test_each_is_asked_for_its_metrics_and_ends_with_its_stdin() -> None:
    async with kept(2) as made:
        await made.gateways.start()
        pids = await made.pids()
        assert set(pids) == {1, 2} and len(set(made.began)) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert sorted(made.left) == sorted(made.began)


async def test_one_that_is_killed_leaves_the_fleet_and_is_started_again_as_another_gateway() -> None:
    async with kept() as made:
        await made.gateways.start()
        pid = (await made.pids())[1]
        os.kill(pid, signal.SIGKILL)
        await another_pid(made, pid)
        assert made.left == made.began[:1]
        assert len(made.began) == 2 and made.began[0] != made.began[1]


async def test_one_that_no_longer_answers_is_killed_and_started_again() -> None:
    async with kept() as made:
        await made.gateways.start()
        pid = (await made.pids())[1]
        os.kill(pid, signal.SIGSTOP)
        assert (await made.gateways.metrics())[1] is None
        await another_pid(made, pid)
        assert not psutil.pid_exists(pid)


async def test_one_that_cannot_start_fails_the_start_of_the_service() -> None:
    async with kept(2, program(begin="sys.exit(3) if config['process'] == 2 else None")) as made:
        with pytest.raises(FurtherGatewayError, match="gateway process 2 did not become ready"):
            await made.gateways.start()


async def test_one_that_goes_on_ending_is_waited_for_longer_and_longer() -> None:
    settings = replace(QUICK, first_backoff_s=0.2, last_backoff_s=60.0)
    async with kept(1, program(begin="sys.exit(3)"), settings) as made:
        with pytest.raises(FurtherGatewayError):
            await made.gateways.start()
        # At once, then after 0.2 s, then after 0.4 s.
        began_s = asyncio.get_running_loop().time()
        await until(lambda: len(made.began) == 4)
        assert asyncio.get_running_loop().time() - began_s > 0.6


async def test_one_that_does_not_end_when_told_is_killed() -> None:
    async with kept(1, program(end="import time; time.sleep(60)")) as made:
        await made.gateways.start()
        pid = (await made.pids())[1]
    assert not psutil.pid_exists(pid)


async def test_one_that_drains_for_longer_than_it_may_be_silent_is_let_end(tmp_path: Path) -> None:
    drained = tmp_path / "drained"
    silent_s = QUICK.alive_interval_s + QUICK.alive_timeout_s
    end = f"import time; time.sleep({2 * silent_s}); open({str(drained)!r}, 'w')"
    async with kept(1, program(end=end)) as made:
        await made.gateways.start()
        await made.gateways.stop(30.0)
    assert drained.exists()


async def test_one_that_is_started_again_and_does_not_become_ready_is_killed_and_started_again(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    # Each life leaves a byte; the second does nothing more.
    begin = f"""
with open({str(lives)!r}, "a") as file:
    file.write(".")
if os.path.getsize({str(lives)!r}) == 2:
    sys.stdin.read()
"""
    async with kept(1, program(begin=begin), replace(QUICK, start_timeout_s=2.0)) as made:
        await made.gateways.start()
        pid = (await made.pids())[1]
        os.kill(pid, signal.SIGKILL)
        await another_pid(made, pid)
        assert lives.read_text() == "..."


async def test_a_model_that_one_found_dead_is_told_of() -> None:
    async with kept(1, program(hear='tell({"event": "model dead", "revision": "cafe"})')) as made:
        await made.gateways.start()
        await made.pids()
        await until(lambda: made.dead)
        assert set(made.dead) == {"cafe"}


def test_a_port_that_somebody_shares_is_taken_nevertheless() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="cannot listen on"):
            check_nobody_listens("127.0.0.1", port)
    check_nobody_listens("127.0.0.1", port)
    check_nobody_listens("127.0.0.1", 0)


def _config(process: int, gateway_id: str) -> FurtherGatewayConfig:
    return FurtherGatewayConfig(
        process=process,
        gateway_id=gateway_id,
        host="127.0.0.1",
        port=1,
        openpi_port=None,
        observation_map=None,
        openpi_policy="",
        registry="",
        cache=Path(),
        store=None,
        named=(),
        fence="auto",
        model=ModelSettings(),
        triton_address="",
        triton_control_address="",
        triton_repository=Path(),
        triton_owner="",
        triton_shares_memory=True,
        tls=None,
        otlp_endpoint="",
        drain_s=0.0,
        load_timeout_s=1.0,
        idle_probe_s=1.0,
        drain_timeout_s=1.0,
        episode_idle_s=1.0,
        log_level=30,
    )
