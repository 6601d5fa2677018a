"""Services that share a tritonserver have numbers of their own, which nobody keeps beyond its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.triton.repository import model_name
from service.triton.tenancy import Tenancy, TenancyError

WAIT_S = 20.0
HOLDER = """
import sys
from pathlib import Path
from service.triton.tenancy import Tenancy
print(Tenancy.take(Path(sys.argv[1])).owner, flush=True)
sys.stdin.read()
"""


@contextmanager
def another_service(repository: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its number, and its process, which ends with the block at the latest."""
    command = [sys.executable, "-c", HOLDER, str(repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def test_services_that_live_have_different_numbers_and_the_lowest_is_taken_first(tmp_path: Path) -> None:
    tenancies = [Tenancy.take(tmp_path) for _ in range(3)]
    assert [tenancy.owner for tenancy in tenancies] == ["0", "1", "2"]
    tenancies[1].let_go()
    again = Tenancy.take(tmp_path)
    assert again.owner == "1"
    for tenancy in (tenancies[0], tenancies[2], again):
        tenancy.let_go()
    assert Tenancy.take(tmp_path).owner == "0"


def test_a_killed_service_gives_its_number_back_and_what_it_left_is_known(tmp_path: Path) -> None:
    living = Tenancy.take(tmp_path)
    with another_service(tmp_path) as (owner, process):
        assert owner == "1"
        for left in (model_name("0123456789ab", "0"), model_name("0123456789ab", "1")):
            (tmp_path / left).mkdir()
        process.kill()
        process.wait(WAIT_S)
    heir = Tenancy.take(tmp_path)
    assert (heir.owner, heir.leftovers) == ("1", (model_name("0123456789ab", "1"),))
    living.let_go()
    heir.let_go()


def test_whoever_removes_leftovers_has_their_number_meanwhile(tmp_path: Path) -> None:
    first, second = Tenancy.take(tmp_path), Tenancy.take(tmp_path)
    (tmp_path / model_name("0123456789ab", "1")).mkdir()
    first.let_go()
    second.let_go()
    heir = Tenancy.take(tmp_path)
    assert (heir.owner, heir.leftovers) == ("0", (model_name("0123456789ab", "1"),))
    third = Tenancy.take(tmp_path)
    assert (third.owner, third.leftovers) == ("2", ())
    heir.forget_leftovers()
    assert heir.leftovers == ()
    fourth = Tenancy.take(tmp_path)
    assert fourth.owner == "1"
    for tenancy in (heir, third, fourth):
        tenancy.let_go()


def test_a_repository_that_cannot_be_locked_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TenancyError, match=r"the model repository cannot be shared: .*gone"):
        Tenancy.take(tmp_path / "gone")
