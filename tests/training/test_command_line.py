"""`python -m training`: a wrong call exits 2, a failed one 1 with its reason and no traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from training.__main__ import VERBS, main
from training.recipe import Recipe

SHIPPED = str(Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop")


def call(*arguments: str) -> int:
    """The exit status. The suite runs on one torch thread, which a call must not change."""
    return main([*arguments, "--threads", "1"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["stage1", "--until", "soon"],
        ["record", "--checkpoint", "x"],
        ["evaluate", "--episodes"],
        ["stats", "--json", "x"],
        ["stage2", "--until", "-1"],
        ["stage2", "--threads", "0"],
        ["record", "--workers", "0"],
        ["bench", "--rounds", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m training" in capsys.readouterr().err


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    words = capsys.readouterr().out.split()
    assert {"record", "stats", "stage1", "stage2", "evaluate", "export", "inspect"} <= set(VERBS) <= set(words)


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "playback", "bench", "experiment", "demo"])
def test_every_verb_that_measures_takes_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--json FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "missing", "remedy"),
    [
        *((verb, "no demonstrations of ", "'python -m training record --recipe demo --run {run}' first")
          for verb in ("stats", "stage1", "stage2")),
        *((verb, "stage 2 in {run}/stage2 is at step 0 of 4000", "the verb 'stage2' first, which resumes")
          for verb in ("export", "inspect")),
    ],
)  # fmt: skip
def test_a_verb_whose_input_is_missing_names_the_verb_that_makes_it(
    verb: str, missing: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert call(verb, "--run", str(run)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{verb}: {missing.format(run=run)}")
    assert captured.err.endswith(f"; run {remedy.format(run=run)}\n")


@pytest.mark.parametrize("verb", ["stage1", "stage2", "export", "inspect", "bench", "evaluate"])
@pytest.mark.parametrize(
    ("device", "said"), [("gpu", "--device is 'gpu', expected cpu or cuda"), ("cuda:7", "finds no GPU here; leave it")]
)
def test_a_device_that_is_not_here_is_a_wrong_call(
    verb: str,
    device: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(verb, "--run", str(tmp_path / "run"), "--device", device) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("stats", "--recipe", "demmo") == 2
    assert "unknown recipe 'demmo', did you mean 'demo'?" in capsys.readouterr().err


def test_a_fault_in_a_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {**Recipe.load("demo").to_json(), "sede": 1}
    (tmp_path / "mine.json").write_text(json.dumps(recipe))
    assert call("stats", "--recipe", str(tmp_path / "mine.json")) == 1
    assert capsys.readouterr().err.startswith("stats: recipe has unknown keys ['sede'], expected [")


def evaluate(tmp_path: Path, *arguments: str) -> int:
    return call(
        *("evaluate", "--run", str(tmp_path / "run"), "--tasks", "drawer-open", "--episodes", "1"),
        *("--workers", "1", *arguments),
    )


def test_evaluating_a_checkpoint_that_is_not_there_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path) == 1
    assert capsys.readouterr().err.endswith("checkpoint is not a directory\n")


def test_evaluating_an_address_needs_the_name_of_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, "--address", "127.0.0.1:1") == 2
    assert capsys.readouterr().err == "evaluate: --address needs --policy, the name of a policy served there\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--checkpoint", SHIPPED, "--first-seed", "3"),
            "--first-seed: evaluation.first_seed is 3, expected at least 5000: held-out scenes",
        ),
        (("--address", "127.0.0.1:1", "--policy", "p", "--device", "cuda"), "--device is for a checkpoint"),
    ],
)
def test_evaluation_refuses_training_scenes_and_a_device_of_somebody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert evaluate(tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("filmed", [False, True])
def test_evaluating_a_gateway_that_is_not_there_says_whom_it_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], filmed: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    videos = ["--videos", str(tmp_path / "videos")] if filmed else []
    assert evaluate(tmp_path, "--address", address, "--policy", "tabletop", *videos) == 1
    assert f"evaluate: policy 'tabletop' at {address}: UNAVAILABLE" in capsys.readouterr().err


def test_evaluating_shows_the_token_to_the_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[object] = []

    def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
        shown.append(dict(context.invocation_metadata()).get("authorization"))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token has been revoked")
        return b""

    class RefusesAll(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(refuse)

    (tmp_path / "token").write_text("pm_0_secret\n")
    server = grpc.server(ThreadPoolExecutor(1), handlers=(RefusesAll(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    token = ("--token-file", str(tmp_path / "token"))
    assert evaluate(tmp_path, "--address", address, "--policy", "tabletop", *token) == 1
    server.stop(0).wait(5)
    assert set(shown) == {"Bearer pm_0_secret"}
    said = capsys.readouterr().err
    assert "UNAUTHENTICATED" in said and "pm_0_secret" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--token-file", "TOKEN"), "came without --address"),
        (("--address", "robots.example:1", "--token-file", "TOKEN"), "would go to robots.example:1 unencrypted"),
        (("--address", "127.0.0.1:1", "--token-file", "none"), "none cannot be read"),
        (("--address", "127.0.0.1:1", "--tls-cert", "TOKEN"), "certificate and key come together"),
        (("--address", "127.0.0.1:1", "--tls-ca", "TOKEN"), "root_certificates hold no certificate"),
    ],
)
def test_what_may_not_be_shown_to_a_gateway_is_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "token").write_text("pm_0_secret")
    given = [str(tmp_path / "token") if each == "TOKEN" else each for each in arguments]
    assert evaluate(tmp_path, "--policy", "tabletop", *given) == 2
    assert said in capsys.readouterr().err


def test_evaluating_an_unknown_task_suggests_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--run", str(tmp_path), "--tasks", "draweropen", "--episodes", "1", "--workers", "1"]
    assert call(*arguments) == 2
    assert "unknown task 'draweropen', did you mean 'drawer-open'?" in capsys.readouterr().err


def test_as_a_program_it_exits_with_the_same_statuses_and_no_traceback(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "training", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    wrong = run("trian")
    failed = run("stats", "--run", str(tmp_path))
    assert (wrong.returncode, failed.returncode) == (2, 1)
    assert "Traceback" not in wrong.stderr + failed.stderr
    assert failed.stdout == ""
