"""Tokens in the registry: digests only, every change heard by the fleet and noted in the audit log."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.credentials import Caps, Scope, TokenCache, TokenRecord, TokenSpec
from service.credentials.issuing import create_token, rotate_token
from service.errors import ConflictError, UnknownTokenError
from service.registry import Registry, open_database

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(file: Path, clock: Clock):
    registry = Registry(open_database(f"sqlite:///{file}"), now=clock)
    yield registry
    registry.close()


SPEC = TokenSpec(
    name="arm-7",
    scopes=frozenset({Scope.INFER}),
    policies=("tabletop", "kitchen"),
    expires_at=NOW + timedelta(days=30),
    caps=Caps(max_requests_per_s=12.5, max_in_flight=3, max_streams=2),
)


def test_a_token_is_kept_as_it_was_specified_and_after_a_restart(registry, file):
    record, issued = create_token(registry, SPEC, actor="ada")
    assert (record.name, record.scopes, record.policies) == (SPEC.name, SPEC.scopes, SPEC.policies)
    assert (record.expires_at, record.caps, record.created_at) == (SPEC.expires_at, SPEC.caps, NOW)
    assert (record.token_id, record.secret_sha256) == (issued.token_id, issued.sha256)
    again = Registry(open_database(f"sqlite:///{file}"))
    assert again.tokens() == (record,)
    again.close()


def test_no_secret_is_ever_written(registry, file):
    record, issued = create_token(registry, SPEC, actor="ada")
    _, rotated = rotate_token(registry, record.token_id, grace_s=60, actor="ada")
    registry.revoke_token(record.token_id, actor="ada")
    registry.close()
    written = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert issued.sha256.encode() in written
    for each in (issued, rotated):
        secret = each.token.encode()[16:]
        assert secret not in written and secret[:12] not in written


def test_every_change_is_a_new_generation_and_an_entry_of_the_audit_log(registry):
    generations = [registry.generation()]
    record, _ = create_token(registry, SPEC, actor="ada")
    generations.append(registry.generation())
    rotate_token(registry, record.token_id, grace_s=0, actor="bob")
    generations.append(registry.generation())
    registry.revoke_token(record.token_id, actor="eve")
    generations.append(registry.generation())
    assert generations == list(range(generations[0], generations[0] + 4))
    entries = registry.audit()[::-1]
    assert [(entry.actor, entry.action) for entry in entries] == [
        ("ada", "create-token"),
        ("bob", "rotate-token"),
        ("eve", "revoke-token"),
    ]
    assert all(entry.detail["token_id"] == record.token_id for entry in entries)
    assert entries[0].detail["policies"] == ["tabletop", "kitchen"]


def test_a_rotation_keeps_the_old_secret_for_its_grace_and_never_two(registry, clock):
    record, first = create_token(registry, SPEC, actor="ada")
    with_grace, second = rotate_token(registry, record.token_id, grace_s=90, actor="ada")
    assert with_grace.secret_sha256 == second.sha256
    assert (with_grace.previous_sha256, with_grace.previous_until) == (first.sha256, NOW + timedelta(seconds=90))
    clock.now += timedelta(seconds=10)
    at_once, third = rotate_token(registry, record.token_id, grace_s=0, actor="ada")
    assert at_once.secret_sha256 == third.sha256
    assert (at_once.previous_sha256, at_once.previous_until) == ("", None)


def test_a_revocation_is_for_good(registry, clock):
    record, _ = create_token(registry, SPEC, actor="ada")
    revoked = registry.revoke_token(record.token_id, actor="ada")
    assert revoked.revoked_at == NOW
    clock.now += timedelta(hours=1)
    assert registry.revoke_token(record.token_id, actor="ada") == revoked
    assert len(registry.audit()) == 2
    with pytest.raises(ConflictError, match="is revoked"):
        rotate_token(registry, record.token_id, grace_s=0, actor="ada")


def test_an_unknown_token_and_a_time_gone_by_are_refused_and_change_nothing(registry, clock):
    before = registry.generation()
    with pytest.raises(UnknownTokenError, match="there is no token '0123'"):
        registry.revoke_token("0123", actor="ada")
    with pytest.raises(UnknownTokenError):
        rotate_token(registry, "0123", grace_s=0, actor="ada")
    clock.now += timedelta(days=30)
    with pytest.raises(ConflictError, match="expected a time to come"):
        create_token(registry, SPEC, actor="ada")
    assert (registry.generation(), registry.tokens(), registry.audit()) == (before, (), ())


def test_a_cache_goes_by_what_the_registry_had_when_it_was_last_refreshed(registry):
    cache = TokenCache()
    cache.refresh(registry)
    assert not cache.snapshot.required
    before = cache.snapshot
    record, _ = create_token(registry, SPEC, actor="ada")
    assert cache.snapshot is before
    cache.refresh(registry)
    assert cache.snapshot.required and cache.snapshot.tokens == {record.token_id: record}
    with pytest.raises(TypeError):
        cache.snapshot.tokens["x"] = record  # pyright: ignore[reportIndexIssue]


def test_a_slow_look_at_the_registry_never_undoes_a_later_one(registry):
    record, _ = create_token(registry, SPEC, actor="ada")
    cache, reading, release = TokenCache(), threading.Event(), threading.Event()

    class Slow:
        def tokens(self) -> list[TokenRecord]:
            reading.set()
            release.wait(10)
            return [record]

    slow = threading.Thread(target=cache.refresh, args=(Slow(),))
    slow.start()
    assert reading.wait(10)
    registry.revoke_token(record.token_id, actor="ada")
    late = threading.Thread(target=cache.refresh, args=(registry,))
    late.start()
    # Long enough for a look that does not wait for the slow one to be over.
    late.join(0.2)
    release.set()
    for thread in (slow, late):
        thread.join(10)
    assert cache.snapshot.tokens[record.token_id].revoked_at is not None
