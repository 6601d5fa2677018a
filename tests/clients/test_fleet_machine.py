"""The machine a figure was measured on: whose CPUs, whose CPU time, and no names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from premotor.client.fleet import machine
from premotor.client.fleet.machine import (
    check_cpus,
    cpu_shares,
    describe_command,
    describe_commit,
    describe_machine,
    pinned,
    tree_cpu_s,
)


@pytest.mark.parametrize(
    ("cpus", "robots", "servers"),
    [
        ((0,), (), ()),
        ((0, 1), (1,), (0,)),
        ((0, 1, 2), (2,), (0, 1)),
        (range(16), (12, 13, 14, 15), tuple(range(12))),
    ],
)
def test_robots_and_servers_part_the_cpus_where_there_is_more_than_one(
    monkeypatch, cpus: tuple[int, ...], robots: tuple[int, ...], servers: tuple[int, ...]
) -> None:
    monkeypatch.setattr(machine, "_affinity", lambda: set(cpus))
    assert cpu_shares() == (robots, servers)


def test_cpus_that_cannot_be_had_are_refused_before_anything_is_kept_on_them() -> None:
    with pytest.raises(ValueError, match=r"CPUs \[100000\] came, this process may have"):
        check_cpus((100000,))
    check_cpus(())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process on a CPU")
def test_a_process_that_was_pinned_has_its_own_cpus_again_afterwards() -> None:
    before = os.sched_getaffinity(0)
    with pinned((min(before),)):
        assert os.sched_getaffinity(0) == {min(before)}
        assert (
            subprocess.check_output(
                [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"], text=True
            ).strip()
            == "1"
        )
    assert os.sched_getaffinity(0) == before


def test_the_cpu_time_of_a_process_includes_what_it_started() -> None:
    # More than is asked for: clocks tick every 10 ms.
    busy = "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end: pass\n"
    child = f"import sys\n{busy}print('done', flush=True)\nsys.stdin.read()"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=sys.stdin)\n"
        "sys.stdin.read() if child.wait() else None"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"done\n"
        found = tree_cpu_s(process.pid)
        process.stdin.close()
    assert found is None or found >= 0.2


def test_the_command_hides_the_server_and_keeps_an_empty_value(monkeypatch) -> None:
    called = ["premotor", "fleet", "--address", "robots.example:1", "--robot-counts", "", "--json", "/a/b/out.json"]
    monkeypatch.setattr(sys, "argv", called)
    assert describe_command("robots.example:1").endswith("--address HOST:PORT --robot-counts '' --json out.json")
    assert describe_command().endswith("--robot-counts '' --json out.json")


def test_the_commit_is_that_of_the_directory_and_says_what_differs_from_it(tmp_path: Path) -> None:
    assert describe_commit(tmp_path) is None
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    (tmp_path / "file").write_text("one")
    for command in (("init", "-q"), ("add", "file"), ("commit", "-q", "-m", "one"), ("tag", "v1")):
        subprocess.run((*git, *command), cwd=tmp_path, check=True)
    commit = subprocess.check_output(("git", "rev-parse", "HEAD"), cwd=tmp_path, text=True).strip()
    assert describe_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert describe_commit(tmp_path) == f"{commit}-dirty"


def test_a_machine_is_described_without_its_name() -> None:
    told = str(describe_machine())
    assert os.uname().nodename not in told or len(os.uname().nodename) < 4
