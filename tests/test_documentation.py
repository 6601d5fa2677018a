"""The pages tell the truth where a machine can tell: commands exist, files exist, tests that are cited exist."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from premotor.client.__main__ import main as client_main
from service.__main__ import main as service_main
from training.__main__ import main as training_main

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/benchmarks.md",
    "docs/figures.md",
    "docs/methods.md",
    "docs/serving.md",
    "docs/training.md",
)
PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "service": service_main,
    "training": training_main,
    "premotor.client": client_main,
}
SOURCE_FOLDERS = ("protos/", "clients/", "policy/", "service/", "training/", "scripts/", "tests/")
SOURCE_SUFFIXES = (".py", ".md", ".proto", ".sh")


def page(name: str) -> str:
    return (ROOT / name).read_text()


def commands(text: str) -> Iterator[str]:
    """Lines of shell blocks and of inline code that call make or one of our programs, comments left out."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from (part for line in block.splitlines() for part in line.split("#")[0].split("&&"))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


def make_targets(text: str) -> set[str]:
    called = [shlex.split(command) for command in commands(text) if command.strip().startswith("make ")]
    return {target for _, *words in called for word in words if "=" not in word for target in word.split("|")}


def program_calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m MODULE ARGUMENTS`; `a|b` stands for two calls."""
    for command in commands(text):
        words = shlex.split(command)
        if "-m" not in words or not words[0].rpartition("/")[2].startswith(("python", "OMP_NUM_THREADS")):
            continue
        module, *arguments = words[words.index("-m") + 1 :]
        for verb in (arguments[0] if arguments else "").split("|"):
            yield module, [*filter(None, [verb]), *arguments[1:]]


def unknown_words(module: str, arguments: list[str]) -> list[str]:
    """Verbs and flags of a call that the program's help does not have."""
    verbs: list[str] = []
    for word in arguments:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", word):
            break
        verbs.append(word)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            PROGRAMS[module]([*verbs, "--help"])
    except SystemExit as exit_:
        if exit_.code != 0:
            return [" ".join(verbs)]
    known = set(re.findall(r"--[a-z][a-z-]*", output.getvalue()))
    return [word for word in arguments if word.startswith("--") and word not in known]


def named_paths(text: str) -> Iterator[str]:
    """Paths that a page names in code, without the test in a file that may follow."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`\s]+)`", prose):
        path = code.partition("::")[0]
        if path.startswith(SOURCE_FOLDERS) or path.endswith(SOURCE_SUFFIXES):
            yield path


def linked_paths(text: str) -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)#]+)\)", text)


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_of_a_page_is_in_the_makefile(name: str) -> None:
    assert make_targets(page(name)) <= set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_is_one_that_its_program_knows(name: str) -> None:
    for module, arguments in program_calls(page(name)):
        if module != "pytest":
            assert unknown_words(module, arguments) == [], f"python -m {module} {' '.join(arguments)}"


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_exists(name: str) -> None:
    assert [path for path in named_paths(page(name)) if not (ROOT / path).exists()] == []
    beside = (ROOT / name).parent
    assert [path for path in linked_paths(page(name)) if not (beside / path).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_test_that_a_page_cites_exists(name: str) -> None:
    missing = [
        f"{path}::{test}"
        for path, test in named_tests(page(name))
        if not re.search(rf"^(async )?def {test}\(", page(path), re.MULTILINE)
    ]
    assert missing == []


def test_the_first_screen_has_the_two_commands_the_house_and_a_place_for_the_figures() -> None:
    first_screen = "\n".join(page("README.md").splitlines()[:40])
    for part in (
        "git clone",
        "make demo",
        "make test",
        "build/demo/results.json",
        "service/gateway",
        "protos/premotor/",
    ):
        assert part in first_screen
    readme = page("README.md")
    assert {"demo", "test", "train-demo"} <= make_targets(readme)
    assert ("service", ["serve", "--policy", "NAME=DIR"]) in list(program_calls(readme))


@pytest.mark.parametrize("name", ["inspection", "inspection_held_out"])
def test_a_published_inspection_is_of_the_shipped_policy_and_finds_that_it_looks(name: str) -> None:
    published = json.loads(page(f"docs/measured/{name}.json"))
    manifest = (ROOT / "checkpoints/tabletop/manifest.json").read_bytes()
    assert published["checkpoint"] == hashlib.sha256(manifest).hexdigest()[:12]
    assert {row["task"] for row in published["tasks"]} == set(json.loads(manifest)["data"])
    assert all(row["images_ratio_history"] >= 1.5 for row in published["tasks"])


def test_make_help_lists_the_verbs() -> None:
    result = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}
    assert {"setup", "demo", "test", "check", "protos", "train-demo"} <= set(listed)
    assert all(listed.values())
    phony = re.search(r"^\.PHONY: (.*)$", page("Makefile"), re.MULTILINE)
    assert phony is not None
    assert set(listed) == set(phony[1].split())


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert "Apache License\n                           Version 2.0" in page("LICENSE")
    assert "premotor contributors" in page("LICENSE")
    assert 'license = "Apache-2.0"' in page("pyproject.toml")


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"$', page("pyproject.toml"), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in page("CHANGELOG.md")


@pytest.mark.parametrize(
    "text",
    ["`make everything`", "```sh\ngit pull && make everything  # all\n```", "```sh\nmake test everything\n```"],
)
def test_a_missing_make_target_would_be_found(text: str) -> None:
    assert "everything" in make_targets(text)


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("`python -m service bogus`", ["bogus"]),
        ("`python -m service serve --policy a=b --bogus`", ["--bogus"]),
        ("```sh\n.venv/bin/python -m service bench overhead --bogus 1\n```", ["--bogus"]),
        ("`python -m training bogus|stats`", ["bogus"]),
        ("`python -m premotor.client bench --bogus`", ["--bogus"]),
        ("`python -m training stage1|stage2`", []),
    ],
)
def test_an_unknown_verb_or_flag_would_be_found(text: str, unknown: list[str]) -> None:
    assert [word for call in program_calls(text) for word in unknown_words(*call)] == unknown


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("see `policy/gone.py`", ["policy/gone.py"]),
        ("[x](gone.md)", ["gone.md"]),
        ("`tests/gone.py::test_x`", ["tests/gone.py"]),
        ("`gone.py`", ["gone.py"]),
        ("a [page](https://example.org) and `build/x` and `NAME=DIR`", []),
    ],
)
def test_a_path_would_be_checked(text: str, paths: list[str]) -> None:
    assert [*linked_paths(text), *named_paths(text)] == paths


def test_a_cited_test_would_be_checked() -> None:
    assert named_tests("`tests/policy/test_flow.py::test_gone` and `x`") == [("tests/policy/test_flow.py", "test_gone")]
