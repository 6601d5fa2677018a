"""`python -m service`: exit statuses and what it says."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from service.__main__ import main
from service.episodes import EpisodeTable
from service.serve import ServeConfig, Service

A_TRITON = (
    *("--triton-address", "localhost:8000", "--triton-control-address", "localhost:8001"),
    *("--triton-repository", "models"),
)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets up logging for a process of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--policy", "tabletop"], "is not NAME=DIR"),
        (["serve", "--policy", "=somewhere"], "is not NAME=DIR"),
        (
            ["serve", "--policy", "lab:tabletop=somewhere"],
            "expected a name of 1 to 128 characters, none of them /, : or a control character",
        ),
        (["serve", "--policy", "a/b=somewhere"], "a policy 'a/b' came"),
        (["serve", "--policy", f"{'a' * 129}=somewhere"], "expected a name of 1 to 128 characters"),
        (["serve", "--policy", "a=b", "--episode-idle-s", "0"], "episode_idle_s is 0"),
        (["serve", "--policy", "a=b", "--idle-probe-s", "nan"], "idle_probe_s is nan"),
        (["serve"], "--policy"),
        (["serve", "--policy", "a=b", "--port", "70000"], "is not a port"),
        (["serve", "--policy", "a=b", "--openpi-port", "x"], "'x' is not a port"),
        (["serve", "--policy", "a=b", "--openpi-map", "/nowhere/map.json"], "No such file"),
        (["serve", "--policy", "a=b", "--openpi-port", "0", "--openpi-map", __file__], "is no observation map"),
        (["serve", "--policy", "a=b", "--backend", "trition"], "invalid choice: 'trition'"),
        (["serve", "--policy", "a=b", "--triton-control-key", __file__], "does not hold KEY=VALUE"),
        (["serve", "--policy", "a=b", "--threads", "0"], "threads is 0"),
        (["serve", "--policy", "a=b", "--gateways", "0"], "num_gateways is 0"),
        (
            ["serve", "--policy", "a=b", "--gateways", "2", "--backend", "local"],
            "several gateways need --backend triton",
        ),
        (["serve", "--policy", "a=b", "--triton-address", "localhost:8001"], "come together"),
        (
            ["serve", "--policy", "a=b", "--triton-address", "localhost"],
            "--triton-address: 'localhost' is not HOST:PORT",
        ),
        (["serve", "--policy", "a=b", "--triton-address", "http://localhost:8000"], "is not HOST:PORT"),
        (["serve", "--policy", "a=b", "--triton-control-address", "localhost:0"], "'localhost:0' is not HOST:PORT"),
        (["serve", "--policy", "a=b", "--backend", "local", *A_TRITON], "came with --backend local, which asks none"),
        (["serve", "--policy", "a=b", "--drain-s", "-1"], "drain_s is -1.0, expected 0 or more"),
        (["serve", "--policy", "a=b", "--drain-s", "nan"], "drain_s is nan"),
        (["serve", "--policy", "a=b", "--memory-budget-bytes", "0"], "memory_budget_bytes is 0, expected more than 0"),
        (["bench", "overhead", "--policy", "a", "--iterations", "0"], "iterations is 0"),
        (["bench", "batching", "--policy", "a", "--concurrency", "0"], "concurrency is 0"),
        (["bench", "device", "--policy", "a", "--iterations", "0"], "iterations is 0"),
        (["bench", "request-parts", "--policy", "a", "--rounds", "0"], "rounds is 0"),
        ([], "VERB"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_what_is_wrong(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_an_observation_map_without_a_port_is_a_wrong_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"policy": "a", "images": {"front": "image"}, "state": ["state"]}))
    with pytest.raises(SystemExit) as end:
        main(["serve", "--policy", "a=b", "--openpi-map", str(path)])
    assert end.value.code == 2
    assert "an observation map came without a port" in capsys.readouterr().err


def test_a_policy_of_openpis_robots_without_a_port_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "--policy", "a=b", "--openpi-policy", "a"])
    assert end.value.code == 2
    assert "came without a port for them" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["triton", "local"])
def test_serving_what_is_no_checkpoint_fails_at_once(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--policy", f"tabletop={tmp_path}", "--backend", backend, "--port", "0", "--admin-port", "0"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "cannot serve: manifest.json is missing" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("registry.db", "the registry's URL is 'registry.db', expected sqlite:///FILE or postgresql://"),
        ("mysql://localhost/registry", "the registry's URL is for 'mysql', expected sqlite or postgresql"),
    ],
)
def test_a_registry_that_is_none_is_a_wrong_call(
    url: str, said: str, toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = ("--port", "0", "--admin-port", "0")
    assert main(["serve", "--policy", f"tabletop={toy_checkpoint}", "--registry", url, *ports]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "fenced"), [([], False), (["--fence", "on"], True), (["--fence", "off"], False)])
def test_a_service_that_is_alone_is_fenced_where_told(
    flags: list[str], fenced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(config: ServeConfig) -> None:
        service = Service(config)
        try:
            announced = await service.start()
            async with httpx.AsyncClient(base_url=announced["admin"]) as http:
                ready = (await http.get("/readyz")).json()
                metrics = (await http.get("/metrics")).text
            said.append((ready["registry"], ready["lease_s"] is not None, "lease_seconds +Inf" not in metrics))
        finally:
            await service.stop()

    said: list[tuple[str, bool, bool]] = []
    monkeypatch.setattr("service.serve.serve", look)
    ports = ("--port", "0", "--admin-port", "0", "--drain-s", "0")
    assert main(["serve", "--state", str(tmp_path), "--backend", "local", *ports, *flags]) == 0
    assert said == [("reachable", fenced, fenced)]


def test_the_silence_that_ends_an_episode_is_the_operators_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(*, idle_s: float) -> EpisodeTable:
        said_s.append(idle_s)
        return EpisodeTable(idle_s=idle_s)

    async def start(config: ServeConfig) -> None:
        service = Service(config)
        try:
            await service.start()
        finally:
            await service.stop()

    said_s: list[float] = []
    monkeypatch.setattr("service.processes.gateway.EpisodeTable", table)
    monkeypatch.setattr("service.serve.serve", start)
    flags = ("--port", "0", "--admin-port", "0", "--drain-s", "0", "--backend", "local", "--state", str(tmp_path))
    assert main(["serve", *flags, "--episode-idle-s", "7.5"]) == 0
    assert said_s == [7.5]


def test_check_prints_the_revision_of_a_good_checkpoint(
    toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(toy_checkpoint)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["probe"] == "passed"
    assert len(result["revision"]) == 12


def test_check_names_the_file_that_is_missing(
    toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(toy_checkpoint, directory)
    (directory / "probe.npz").unlink()
    assert main(["check", str(directory)]) == 1
    assert "probe.npz is missing" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_measuring_a_device_that_is_not_there_fails_saying_so(
    toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "device", "--policy", str(toy_checkpoint), "--device", "cuda"]) == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err
