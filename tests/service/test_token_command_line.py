"""`python -m service token` works on the database itself: a token alone on stdout, once, and what is said on stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.__main__ import main
from service.credentials import Credentials, Scope, Surface, TokenCache
from service.registry import Registry, open_database


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


def scopes_of(url: str, token: str) -> set[str]:
    """What a gateway on that registry would let the token do."""
    registry, cache = Registry(open_database(url)), TokenCache()
    cache.refresh(registry)
    registry.close()
    access = Credentials(metrics_registry=CollectorRegistry(), tokens=cache).on(Surface.GRPC)
    return {scope.value for scope in Scope if access.caller((f"Bearer {token}",)).may([scope])}


def token(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line not in captured.err and line[16:] not in captured.err
    return line


def test_a_token_made_before_anything_runs_is_good(url, capsys):
    assert main(["token", "create", "--registry", url, "--name", "ada", "--scope", "admin"]) == 0
    assert scopes_of(url, token(capsys)) == {"admin", "observe"}


def test_what_was_made_is_listed_rotated_and_revoked(url, capsys):
    create = ["token", "create", "--registry", url, "--name", "arm-7", "--scope", "infer", "--policy", "tabletop"]
    assert main([*create, "--expires-in-days", "1.5", "--max-in-flight", "2", "--max-requests-per-s", "0.5"]) == 0
    first = token(capsys)
    assert main(["token", "list", "--registry", url]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["token_id"] == first[3:15]
    assert (described["name"], described["scopes"], described["policies"]) == ("arm-7", ["infer"], ["tabletop"])
    assert (described["max_in_flight"], described["max_requests_per_s"], described["max_streams"]) == (2, 0.5, 128)
    assert described["expires_at"] > described["created_at"] and described["revoked_at"] is None
    assert main(["token", "rotate", first[3:15], "--registry", url, "--grace-s", "60"]) == 0
    second = token(capsys)
    assert scopes_of(url, first) == scopes_of(url, second) == {"infer"}
    assert main(["token", "revoke", first[3:15], "--registry", url]) == 0
    assert capsys.readouterr().out == ""
    assert main(["token", "list", "--registry", url]) == 0
    assert json.loads(capsys.readouterr().out)["revoked_at"] is not None
    registry = Registry(open_database(url))
    assert all(entry.actor.startswith("command line (") for entry in registry.audit())
    registry.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--name", "a", "--scope", "root"], "invalid choice: 'root'"),
        (["create", "--name", "a"], "--scope"),
        (["create", "--name", "", "--scope", "infer"], "name is ''"),
        (["create", "--name", "a", "--scope", "admin", "--policy", "b"], "expected infer alone"),
        (["create", "--name", "a", "--scope", "infer", "--expires-in-days", "0"], "--expires-in-days is 0.0"),
        (["create", "--name", "a", "--scope", "infer", "--max-in-flight", "0"], "max_in_flight is 0"),
        (["rotate", "0123", "--grace-s", "-1"], "grace_s is -1.0"),
        (["revoke"], "TOKEN_ID"),
        ([], "WHAT"),
    ],
)
def test_a_wrong_call_exits_with_2_and_touches_no_database(arguments, said, url, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["token", *arguments, *(["--registry", url] if arguments else [])])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "registry.db").exists()


def test_what_cannot_be_done_exits_with_1_and_a_url_that_is_none_with_2(url, tmp_path, capsys):
    assert main(["token", "revoke", "0123", "--registry", url]) == 1
    assert "there is no token '0123'" in capsys.readouterr().err
    assert main(["token", "list", "--registry", f"sqlite:///{tmp_path}/no/such/registry.db"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main(["token", "list", "--registry", "registry.db"]) == 2
    assert "expected sqlite" in capsys.readouterr().err
