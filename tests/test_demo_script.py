"""`scripts/demo.py`, which is `make demo`: it serves, plays, says what came out, and leaves nothing running."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import psutil
import pytest
import torch

from policy.checkpoint import write_checkpoint
from policy.config import ConvolutionalSettings, ModelConfig
from policy.policy import Policy
from policy.request import ChunkRequest
from policy.trunk import TrunkConfig
from policy.vla import build_vla
from policy.vocabulary import train_tokenizer
from service.__main__ import main as service_main
from training.recipe import Recipe
from training.simulation.bodies.sawyer import SPEC as SAWYER
from training.simulation.registry import body_of

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("premotor_demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_demo(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for the demo's Sawyer that has learned nothing."""
    directory = tmp_path_factory.mktemp("checkpoints") / "untrained"
    tokenizer = train_tokenizer(["open the drawer"])
    trunk = TrunkConfig(width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=64)
    config = ModelConfig(
        size="toy",
        num_embodiments=1,
        max_cameras=2,
        max_state_dim=SAWYER.state_dim,
        max_action_dim=SAWYER.action_dim,
        image_size=32,
        interpolation="bilinear",
        action_horizon=50,
        execution_horizon=50,
        history_steps=4,
        num_inference_steps=1,
        max_inference_steps=2,
        noise_scale=1.0,
        latent_dim=16,
        num_soft_tokens=1,
        encoder=trunk,
        decoder=trunk,
        backbone=ConvolutionalSettings(
            vocabulary=tokenizer.get_vocab_size(), num_keypoints=4, channels=(4, 8, 8, 8), trunk=trunk
        ),
    )
    side = {"min": [-1.0] * 4, "max": [1.0] * 4, "q01": [-1.0] * 4, "q99": [1.0] * 4}
    statistics = [{"state": side, "action": side}]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vla = build_vla(config, tokenizer)
    request = ChunkRequest(
        embodiment=SAWYER.name,
        images={camera.name: torch.zeros(camera.height, camera.width, 3).byte() for camera in SAWYER.cameras},
        state=torch.zeros(SAWYER.state_dim),
        instruction="open the drawer",
        num_inference_steps=1,
    )
    policy = Policy(vla=vla, specs=[SAWYER], statistics=statistics, manifest={}, revision="")
    write_checkpoint(
        directory,
        vla=vla,
        specs=[SAWYER],
        statistics=statistics,
        probe=[(request, *policy.predict_chunk([request]))],
        manifest={"method": "none", "variant": "no-prior", "data": {}, "training": {}, "metrics": {}},
    )
    return directory


def test_a_demo_plays_over_grpc_and_leaves_a_table_figures_a_video_and_no_service(
    untrained: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    result = run_demo(
        *("--checkpoint", str(untrained), "--backend", "local", "--tasks", "drawer-open", "--episodes", "1"),
        *("--workers", "1", "--out", str(tmp_path / "out"), "--json", str(figures)),
    )
    assert result.returncode == 0, result.stderr
    assert "drawer-open" in result.stdout
    assert "95 % interval" in result.stdout
    assert "demo: gRPC on 127.0.0.1:" in result.stderr
    (row,) = json.loads(figures.read_text())
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == [row]
    assert (row["embodiment"], row["task"], row["episodes"], row["successes"]) == ("sawyer", "drawer-open", 1, 0)
    assert 0 < row["latency_p50_ms"] <= row["latency_p99_ms"]
    assert row["chunks_per_s"] > 0
    with av.open(str(tmp_path / "out" / "videos" / "drawer-open.mp4")) as video:
        assert video.streams.video[0].frames == 200 + SAWYER.control_rate_hz
    last = json.loads((tmp_path / "out" / "service.log").read_text().splitlines()[-1])
    assert last["event"] == "stopped"


def test_a_demo_that_is_told_to_end_takes_service_and_simulators_along(untrained: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, str(SCRIPT), "--checkpoint", str(untrained), "--backend", "local", "--workers", "2"),
        *("--tasks", "drawer-open", "assembly", "--episodes", "1000", "--out", str(tmp_path)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as demo:
        giving_up = threading.Timer(120, demo.kill)
        giving_up.start()
        children: list[psutil.Process] = []
        try:
            assert demo.stderr is not None
            assert any(" of 1 solved" in line for line in demo.stderr)
            children = psutil.Process(demo.pid).children(recursive=True)
            assert len(children) >= 3
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(30) == 128 + signal.SIGTERM
            assert not psutil.wait_procs(children, timeout=10)[1]
        finally:
            giving_up.cancel()
            demo.kill()
            for left in psutil.wait_procs(children, timeout=0)[1]:
                left.kill()
    assert json.loads((tmp_path / "service.log").read_text().splitlines()[-1])["event"] == "stopped"


def test_a_service_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-checkpoint"
    result = run_demo("--checkpoint", str(missing), "--backend", "local", "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "the service ended with status 1 before it was ready" in result.stderr
    assert f"{missing} is not a directory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "remote"), "--backend"),
        (("--episodes", "0"), "--episodes is 0, expected at least 1"),
        (("--workers", "-1"), "--workers is -1, expected at least 1"),
        (("--first-seed", "3"), "--first-seed is 3, expected at least 100000"),
        (("--tasks", "lift", "draweropen"), "unknown task 'draweropen', did you mean 'drawer-open'? Expected one of "),
    ],
)
def test_a_wrong_call_exits_2_before_anything_starts(
    demo: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_:
        demo.main()
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_tasks_and_held_out_scenes_of_the_shipped_checkpoints_recipe(demo: ModuleType) -> None:
    recipe = Recipe.load("cross13-history")
    assert set(demo.TASKS) <= set(recipe.data.tasks)
    assert len({body_of(task) for task in demo.TASKS}) >= 5
    assert recipe.evaluation.first_seed == demo.HELD_OUT_SEED


FAKE_SERVICE = """#!{python} -IS
import json, signal, sys, time
from pathlib import Path
here = Path(__file__).parent
def stop(*_):
    (here / "signal").write_text("SIGTERM")
    {on_signal}
signal.signal(signal.SIGTERM, stop)
(here / "arguments").write_text(json.dumps(sys.argv[1:]))
print("a line that is no JSON")
print(json.dumps({{"event": "loading"}}))
sys.stdout.write('{{"event": "ready", "grpc": ')
sys.stdout.flush()
sys.stdout.write('"127.0.0.1:1", "admin": "http://127.0.0.1:2"}}\\n')
sys.stdout.flush()
{then}
signal.pause()
signal.pause()
"""


@pytest.fixture
def fake_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a program in the place of `python -m service`."""

    def write(*, on_signal: str = "sys.exit(0)", then: str = "") -> Path:
        path = tmp_path / "service"
        path.write_text(FAKE_SERVICE.format(python=Path(sys.executable).resolve(), on_signal=on_signal, then=then))
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        return tmp_path

    return write


def test_the_service_is_called_as_its_command_line_allows_and_stopped_by_sigterm(
    demo: ModuleType, fake_service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_service()
    with demo.service(tmp_path / "checkpoint", "local", tmp_path / "log") as ready:
        assert ready == {"event": "ready", "grpc": "127.0.0.1:1", "admin": "http://127.0.0.1:2"}
    assert (tmp_path / "signal").read_text() == "SIGTERM"
    dash_m, package, *arguments = json.loads((tmp_path / "arguments").read_text())
    assert (dash_m, package) == ("-m", "service")
    assert f"tabletop={tmp_path / 'checkpoint'}" in arguments
    parsed: list[argparse.Namespace] = []
    monkeypatch.setattr("service.serve_command._serve", lambda options: parsed.append(options) or (lambda: 0))
    assert service_main(arguments) == 0
    assert (parsed[0].port, parsed[0].admin_port, parsed[0].backend) == (0, 0, "local")


def test_a_service_that_ignores_sigterm_is_killed(
    demo: ModuleType, fake_service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_service(on_signal="pass")
    monkeypatch.setattr(demo, "STOP_TIMEOUT_S", 0.3)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kwargs: started.append(real(*args, **kwargs)) or started[0]
    )
    with demo.service(tmp_path / "checkpoint", "local", tmp_path / "log"):
        pass
    assert started[0].returncode == -signal.SIGKILL


def test_a_failing_evaluation_stops_the_service_too(demo: ModuleType, fake_service: Any, tmp_path: Path) -> None:
    fake_service()
    with pytest.raises(ZeroDivisionError), demo.service(tmp_path / "checkpoint", "local", tmp_path / "log"):
        raise ZeroDivisionError
    assert (tmp_path / "signal").read_text() == "SIGTERM"


def test_waiting_for_a_service_that_never_gets_ready_ends(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "START_TIMEOUT_S", 0.5)
    (tmp_path / "log").write_text("loading a large model\n")
    loading = """import time; print('{"event": "loading"}', flush=True); time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", loading], stdout=subprocess.PIPE) as child:
        try:
            with pytest.raises(SystemExit, match=r"not get ready within 0\.5 s\nloading a large model"):
                demo._wait_until_ready(child, tmp_path / "log")
        finally:
            child.kill()
