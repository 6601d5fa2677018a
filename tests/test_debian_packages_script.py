"""`scripts/install_debian_packages.sh`: what it does as root, and the one command that it tells everybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "install_debian_packages.sh"
# A machine without package lists: nothing can be installed before they are fetched.
APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$CALLS"
case "$1" in
    update) touch "$LISTS" ;;
    install) test -f "$LISTS" || { echo "E: Unable to locate package" >&2; exit 100; } ;;
esac
"""
# A Python without venv, so that there is always a package to install.
PYTHON = """#!/bin/sh
case "$*" in *ensurepip*) exit 1 ;; esac
exec {python} "$@"
"""


class Machine:
    """Stand-ins for the programs that would change the real one."""

    def __init__(self, root: Path, *, user: int) -> None:
        self.calls, self._bin = root / "calls", root / "bin"
        self._bin.mkdir()
        self._write("apt-get", APT_GET)
        self._write("id", f"#!/bin/sh\necho {user}\n")
        self._write("sudo", '#!/bin/sh\nexec "$@"\n')
        self._write("python", PYTHON.format(python=sys.executable))
        self._environment = {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHON": str(self._bin / "python"),
            "CALLS": str(self.calls),
            "LISTS": str(root / "lists"),
        }

    def _write(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def shell(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def package() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}-venv"


def test_the_command_that_it_prints_works_on_a_machine_without_package_lists(tmp_path: Path, package: str) -> None:
    machine = Machine(tmp_path, user=1000)
    said = machine.shell(str(SCRIPT))
    assert said.returncode == 1
    assert not machine.calls.exists(), "it installs nothing by itself"
    (command,) = (line.strip() for line in said.stderr.splitlines() if line.startswith("    "))
    done = machine.shell("-c", command)
    assert done.returncode == 0, done.stderr
    update, install = machine.calls.read_text().splitlines()
    assert update == "apt-get update"
    assert install.startswith("apt-get install -y --no-install-recommends ") and package in install.split()


def test_root_has_them_installed(tmp_path: Path, package: str) -> None:
    machine = Machine(tmp_path, user=0)
    done = machine.shell(str(SCRIPT))
    assert done.returncode == 0, done.stderr
    update, install = machine.calls.read_text().splitlines()
    assert update == "apt-get update -qq"
    assert package in install.split()
