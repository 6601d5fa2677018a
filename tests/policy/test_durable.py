"""What a power cut leaves behind a name: its whole content, or nothing."""

import os
from pathlib import Path

import pytest

from policy.durable import rename_durably


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced and renamed, in that order, by its name then."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return done


def test_a_directory_gets_its_name_after_all_below_it_is_on_the_disk(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    staged = tmp_path / "staged"
    (staged / "inner").mkdir(parents=True)
    (staged / "a.json").write_text("{}")
    (staged / "inner" / "b.bin").write_bytes(b"b")

    rename_durably(staged, tmp_path / "whole")

    renamed = steps.index(("rename", "staged"))
    assert {name for _, name in steps[:renamed]} == {"a.json", "inner", "b.bin", "staged"}
    assert steps[renamed + 1 :] == [("sync", tmp_path.name)]
    assert (tmp_path / "whole" / "inner" / "b.bin").read_bytes() == b"b"
    assert not staged.exists()


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    (tmp_path / "latest").write_text("old")
    (tmp_path / "latest.tmp").write_text("new")

    rename_durably(tmp_path / "latest.tmp", tmp_path / "latest")

    assert steps == [("sync", "latest.tmp"), ("rename", "latest.tmp"), ("sync", tmp_path.name)]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("latest", "new")]


def test_a_directory_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    for name in ("staged", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    with pytest.raises(OSError):
        rename_durably(tmp_path / "staged", tmp_path / "whole")

    assert (tmp_path / "whole" / "file").read_text() == "whole"
    assert (tmp_path / "staged" / "file").read_text() == "staged"
