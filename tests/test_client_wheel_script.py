"""`scripts/check_client_wheel.py`: on which Pythons the client's wheel is tried, and that it says which are missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "check_client_wheel.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("premotor_check_client_wheel", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_python(path: Path, version: str) -> Path:
    """What answers as an interpreter of that version; without one it fails, as pyenv's stand-ins do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{f'echo {version}' if version else 'exit 127'}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no Python at all."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_every_python_on_the_path_or_of_pyenv_is_found(script: ModuleType, machine: Path) -> None:
    on_path = write_python(machine / "bin" / "python3.10", "3.10.13")
    write_python(machine / "bin" / "python3.12", "")
    versions = machine / "home" / ".pyenv" / "versions"
    kept = write_python(versions / "3.12.1" / "bin" / "python", "3.12.1")
    write_python(versions / "3.9.18" / "bin" / "python", "3.9.18")
    write_python(versions / "3.13.0" / "bin" / "python", "")
    assert script.find_pythons() == {"3.10": on_path, "3.12": kept}


def test_each_that_is_found_is_tried_and_the_others_are_said_to_be_missing(
    script: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("3.10", "3.13"):
        write_python(machine / "bin" / f"python{version}", f"{version}.1")
    tried: list[tuple[str, str]] = []

    def install(python: Path, _wheel: Path, numpy: str, _environment: Path) -> Path:
        tried.append((python.name, numpy))
        return python

    def build(directory: Path) -> Path:
        directory.mkdir()
        (directory / "premotor-1.whl").write_bytes(b"wheel")
        return directory / "premotor-1.whl"

    @contextmanager
    def served() -> Iterator[str]:
        yield "127.0.0.1:1"

    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr(script, "served", served)
    monkeypatch.setattr(script, "install", install)
    monkeypatch.setattr(script, "installed", lambda _environment: {"numpy": "2"})
    monkeypatch.setattr(script, "play", lambda *_: "9 actions of 1 chunks, 0 underruns")
    assert script.main([]) == 0
    assert tried == [("python3.10", "1.26.*"), ("python3.10", "2.*"), ("python3.13", "2.*")]
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "python 3.10.1, numpy 2: 9 actions of 1 chunks, 0 underruns"
    assert printed[-1] == "not found, and so not tried: Python 3.11, 3.12"
    tried.clear()
    assert script.main(["--python", str(machine / "bin" / "python3.13")]) == 0
    assert tried == [("python3.13", "2.*")]
    assert "not found" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "none of Python 3.10, 3.11, 3.12, 3.13 was found"),
        (["--python", "bin/python3.9"], "Python 3.9 came, expected some of 3.10, 3.11, 3.12, 3.13"),
    ],
)
def test_without_a_python_to_try_nothing_is_built(
    script: ModuleType,
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    write_python(machine / "bin" / "python3.9", "3.9.18")
    monkeypatch.chdir(machine)

    def check(_pythons: Mapping[str, Path], _directory: Path) -> None:
        raise AssertionError("nothing may be built")

    monkeypatch.setattr(script, "check", check)
    with pytest.raises(SystemExit) as exit_:
        script.main(arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
