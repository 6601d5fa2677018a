"""What a robot installs, tried as a robot would: python scripts/check_client_wheel.py

Builds the wheel, holds it to its size and contents, installs it with nothing else in fresh environments of every Python
from 3.10 to 3.13 that is found, with numpy 1.26 and with numpy 2, and runs the 25-line example in each against the
shipped policy. Says which Pythons were missing. Exits with 1 when something is not as it should be. Does not own the
client's tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "control_loop.py"
POLICY, BODY = "tabletop", "sawyer"
MAX_BYTES = 1_000_000
# With the numpy of each; numpy 1 has no wheels for Python 3.13.
PYTHONS = {
    "3.10": ("1.26.*", "2.*"),
    "3.11": ("1.26.*", "2.*"),
    "3.12": ("1.26.*", "2.*"),
    "3.13": ("2.*",),
}
# What may be there besides the wheel itself; typing_extensions is grpcio's.
MAY_BE_INSTALLED = {"premotor", "grpcio", "protobuf", "numpy", "typing_extensions"}
_SETUP_TIMEOUT_S = 600.0
_RUN_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 180.0


class CheckError(Exception):
    """The wheel is not what it should be; the message says in what."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the client's wheel and try it in fresh environments.")
    parser.add_argument(
        "--python", type=Path, action="append", metavar="FILE",
        help=f"one to try, again for more (default: every one of {', '.join(PYTHONS)} that is found)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        pythons = {minor_version(python): python for python in options.python} if options.python else find_pythons()
        if unknown := sorted(set(pythons) - set(PYTHONS)):
            parser.error(f"Python {', '.join(unknown)} came, expected some of {', '.join(PYTHONS)}")
        if not pythons:
            parser.error(f"none of Python {', '.join(PYTHONS)} was found; name one with --python")
        with tempfile.TemporaryDirectory(prefix="premotor-wheel-") as directory:
            check(pythons, Path(directory))
    except CheckError as error:
        print(f"the wheel is not as it should be: {error}", file=sys.stderr)
        return 1
    missing = [version for version in PYTHONS if version not in pythons]
    if missing and not options.python:
        print(f"not found, and so not tried: Python {', '.join(missing)}")
    return 0


def find_pythons() -> dict[str, Path]:
    """By version, those on PATH or where pyenv keeps its interpreters."""
    found: dict[str, Path] = {}
    for version in PYTHONS:
        on_path = shutil.which(f"python{version}")
        kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for python in (*([Path(on_path)] if on_path else []), *reversed(kept)):
            with contextlib.suppress(CheckError):  # pyenv's stand-in for one that is not chosen
                if version not in found and minor_version(python) == version:
                    found[version] = python
    return found


def minor_version(python: Path) -> str:
    """As in PYTHONS. Raises CheckError for what does not run."""
    return ".".join(_version(python).split(".")[:2])


def check(pythons: Mapping[str, Path], directory: Path) -> None:
    """Prints a line for each thing that held. Raises CheckError."""
    wheel = build(directory / "dist")
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, at most {MAX_BYTES}")
    with served() as address:
        for version, python in pythons.items():
            for numpy in PYTHONS[version]:
                environment = install(python, wheel, numpy, directory / f"python-{version}-numpy-{numpy[0]}")
                versions = installed(environment)
                said = play(environment, address, directory)
                listed = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
                print(f"python {_version(environment)}, {listed}: {said}", flush=True)


def build(directory: Path) -> Path:
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    (wheel,) = directory.glob("premotor-*.whl")
    if wheel.stat().st_size >= MAX_BYTES:
        raise CheckError(f"{wheel.name} has {wheel.stat().st_size} bytes, expected less than {MAX_BYTES}")
    with zipfile.ZipFile(wheel) as content:
        foreign = [name for name in content.namelist() if not re.match(r"premotor(-[^/]+\.dist-info)?/", name)]
    if foreign:
        raise CheckError(f"{wheel.name} holds {foreign[:3]}, expected premotor alone")
    return wheel


def install(python: Path, wheel: Path, numpy: str, environment: Path) -> Path:
    """The interpreter of a new environment."""
    _run(str(python), "-m", "venv", str(environment))
    own = environment / "bin" / "python"
    _run(str(own), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", str(wheel), f"numpy=={numpy}")
    return own


def installed(python: Path) -> dict[str, str]:
    """Package to version. Raises CheckError when something came along that a robot should not need."""
    listed = json.loads(_run(str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"))
    versions = {each["name"].replace("-", "_"): each["version"] for each in listed}
    brought = {name: version for name, version in versions.items() if name not in ("pip", "setuptools", "wheel")}
    if not brought.keys() <= MAY_BE_INSTALLED:
        raise CheckError(f"it brought {sorted(brought.keys() - MAY_BE_INSTALLED)} along")
    return brought


def play(python: Path, address: str, directory: Path) -> str:
    """What the example says at its end. It runs away from the checkout, so that what it imports was installed."""
    example = directory / EXAMPLE.name
    shutil.copy(EXAMPLE, example)
    said = _run(str(python), "-W", "error", str(example), address, POLICY, BODY, cwd=directory).strip()
    played = re.fullmatch(r"(\d+) actions of (\d+) chunks, \d+ underruns", said)
    if played is None or not (int(played[1]) and int(played[2])):
        raise CheckError(f"the example said {said!r}")
    return said


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a gateway with the shipped policy."""
    command = [
        *(sys.executable, "-m", "service", "--log-level", "warning", "serve", "--backend", "local"),
        *("--policy", f"{POLICY}={ROOT / 'checkpoints' / POLICY}", "--port", "0", "--admin-port", "0"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if selector.select(_START_TIMEOUT_S) else ""
            if not line:
                raise CheckError("the service did not start")
            yield json.loads(line)["grpc"]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30.0)
            except subprocess.TimeoutExpired:
                process.kill()


def _version(python: Path) -> str:
    return _run(str(python), "-c", "import platform; print(platform.python_version())").strip()


def _run(*command: str, cwd: Path | None = None) -> str:
    """What it printed. Raises CheckError when it failed or did not end."""
    timeout_s = _RUN_TIMEOUT_S if cwd is not None else _SETUP_TIMEOUT_S
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckError(f"{' '.join(command)}: {error}") from None
    if ended.returncode != 0:
        raise CheckError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main())
