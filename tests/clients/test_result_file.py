"""A result is written whole or not at all, and where it cannot be is known before there is one."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from premotor.client.result_file import writable_file, write_json


def test_a_result_takes_the_place_of_the_one_before_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"phase": 1})
    before = path.open()
    write_json(path, {"phase": 2})
    # Who had it open reads the old one to its end.
    assert json.load(before) == {"phase": 1}
    assert json.loads(path.read_text()) == {"phase": 2}
    assert list(tmp_path.iterdir()) == [path]
    before.close()


def test_a_result_that_cannot_be_written_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"phase": 1})
    with pytest.raises(TypeError):
        write_json(path, {"phase": object()})
    assert json.loads(path.read_text()) == {"phase": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_is_null_for_json_has_no_word_for_it(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"a": [1.5, math.inf], "b": (math.nan, {"c": -math.inf})})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": [1.5, None], "b": [None, {"c": None}]}


def test_no_path_writes_nothing() -> None:
    write_json(None, {"a": 1})


@pytest.mark.parametrize("place", ["missing/result.json", "."])
def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a file in a folder that exists"):
        writable_file(str(tmp_path / place))
    assert writable_file(str(tmp_path / "result.json")) == tmp_path / "result.json"
