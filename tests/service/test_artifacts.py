"""A checkpoint comes from the store or a URL, whole, with the digest that was asked for, and from nowhere else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import fsspec
import pytest

from service.artifacts import ArtifactLimits, ArtifactStore
from service.revision import RevisionError

POLICY = "tabletop"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    (tmp_path / "store").mkdir()
    limits = ArtifactLimits(schemes=("memory",), max_files=10, max_bytes=100_000)
    return ArtifactStore(root=tmp_path / "store", cache=tmp_path / "cache", limits=limits)


@pytest.fixture
def bucket():
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/bucket", recursive=True)


def upload(memory, checkpoint: Path) -> str:
    for path in checkpoint.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/{path.relative_to(checkpoint)}", path.read_bytes())
    return "memory://bucket"


def digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()


def test_a_directory_of_the_store_is_opened(store, kit, tmp_path):
    checkpoint = kit.write_checkpoint(tmp_path / "store" / "team" / "old")
    assert store.open(POLICY, "team/old", manifest_sha256=digest(checkpoint)).directory == checkpoint


@pytest.mark.parametrize(
    "location", ["../outside", "/etc", "team/../../outside", ".", "", "link", "no-such", "a\\b", "a\0b"]
)
def test_no_location_leaves_the_store(store, kit, tmp_path, location):
    kit.write_checkpoint(tmp_path / "outside")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    for check in (store.check_location, lambda name: store.open(POLICY, name)):
        with pytest.raises(RevisionError, match="location is"):
            check(location)


def test_without_a_store_nothing_is_opened_by_directory_but_what_the_operator_named(kit, tmp_path):
    checkpoint = kit.write_checkpoint(tmp_path / "checkpoint")
    store = ArtifactStore(root=None, cache=tmp_path / "cache")
    with pytest.raises(RevisionError, match="expected --store DIR"):
        store.open(POLICY, str(checkpoint))
    assert store.open(POLICY, store.name(checkpoint)).directory == checkpoint


def test_another_digest_than_was_asked_for_is_refused(store, kit, tmp_path, bucket):
    url = upload(bucket, kit.write_checkpoint(tmp_path / "store" / "old"))
    for location in ("old", url):
        with pytest.raises(RevisionError, match="expected 000000000000"):
            store.open(POLICY, location, revision="0" * 12)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_url_is_fetched_once_and_forgotten_when_told(store, kit, tmp_path, bucket):
    checkpoint = kit.write_checkpoint(tmp_path / "source")
    url = upload(bucket, checkpoint)
    first = store.open(POLICY, url)
    assert first.directory == tmp_path / "cache" / first.revision
    bucket.rm("/bucket/model.safetensors")
    assert store.open(POLICY, url, manifest_sha256=digest(checkpoint)) == first
    store.forget(first.revision)
    with pytest.raises(RevisionError, match=r"model.safetensors cannot be fetched: FileNotFoundError"):
        store.open(POLICY, url, manifest_sha256=digest(checkpoint))
    bucket.pipe_file("/bucket/model.safetensors", b"")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../../escape": {"num_bytes": 1}}, "expected a plain path"),
        ({"/etc/passwd": {"num_bytes": 1}}, "expected a plain path"),
        ({f"file-{number}": {"num_bytes": 1} for number in range(11)}, "expected at most 10"),
        ({"model.safetensors": {"num_bytes": 100_001}}, "expected at most 10 of 100000"),
        ({"model.safetensors": {}}, "lists no files"),
        ([], "lists no files"),
    ],
)
def test_a_manifest_that_lists_too_much_fetches_nothing(store, tmp_path, bucket, files, message):
    bucket.pipe_file("/bucket/manifest.json", json.dumps({"files": files}).encode())
    with pytest.raises(RevisionError, match=message):
        store.open(POLICY, "memory://bucket")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_grew_is_not_read_to_its_end(store, kit, tmp_path, bucket):
    url = upload(bucket, kit.write_checkpoint(tmp_path / "source"))
    bucket.pipe_file("/bucket/model.safetensors", b"w" * 5000)
    with pytest.raises(RevisionError, match=r"model\.safetensors has more than 7 bytes"):
        store.open(POLICY, url)


@pytest.mark.parametrize("url", ["file:///etc", "ftp://host/x", "ssh://host/x", "local://x"])
def test_only_listed_schemes_are_fetched(store, url):
    with pytest.raises(RevisionError, match="scheme"):
        store.open(POLICY, url)
