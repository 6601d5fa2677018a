"""A checkpoint comes from the store or a URL, whole, with the digest that was asked for, and from nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from service.artifacts import ArtifactLimits, ArtifactStore, _web_options
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


def test_what_is_fetched_is_on_the_disk_before_its_digest_names_it(store, kit, tmp_path, bucket, monkeypatch):
    synced, fsync = {}, os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced[path.name] = path.stat().st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    fetched = store.open(POLICY, upload(bucket, kit.write_checkpoint(tmp_path / "source"))).directory
    assert synced == {path.name: path.stat().st_size for path in fetched.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../../escape": {"num_bytes": 1}}, "expected a plain path"),
        ({"/etc/passwd": {"num_bytes": 1}}, "expected a plain path"),
        ({f"file-{number}": {"num_bytes": 1} for number in range(11)}, "expected at most 10"),
        ({"model.safetensors": {"num_bytes": 100_001}}, "expected at most 10 of 100000"),
        ({"a": {"num_bytes": 10**12}, "b": {"num_bytes": -(10**12)}}, "less than no bytes"),
        ({"model.safetensors": {"num_bytes": float("inf")}}, "lists no files"),
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


def test_what_the_operator_named_is_known_to_the_next_start_for_as_long_as_it_is_registered(kit, tmp_path):
    def started() -> ArtifactStore:
        return ArtifactStore(root=None, cache=tmp_path / "cache", kept=tmp_path / "named.json")

    checkpoint, other = (kit.write_checkpoint(tmp_path / name) for name in ("checkpoint", "other"))
    store = started()
    location = store.name(checkpoint)
    store.name(other)
    store.keep({location, "a/directory/of/a/store"})
    again = started()
    assert again.named == (checkpoint,)
    assert again.open(POLICY, location).directory == checkpoint
    with pytest.raises(RevisionError, match=f"expected --store DIR .*--policy NAME={other}"):
        again.open(POLICY, str(other))
    again.keep(set())
    assert started().named == ()


def test_a_file_of_named_directories_that_is_another_s_is_refused(tmp_path):
    for content in ("{}", "[1]", "no JSON"):
        (tmp_path / "named.json").write_text(content)
        with pytest.raises(RevisionError, match="is not what the service keeps there"):
            ArtifactStore(root=None, cache=tmp_path / "cache", kept=tmp_path / "named.json")


def test_downloads_are_told_from_what_else_lies_there(store, kit, tmp_path, bucket):
    assert store.downloads() == frozenset()
    found = store.open(POLICY, upload(bucket, kit.write_checkpoint(tmp_path / "source")))
    (tmp_path / "cache" / "fetch-half").mkdir()
    assert store.downloads() == {found.revision}


@pytest.mark.parametrize("url", ["https://[abc", "memory://[::1"])
def test_a_url_that_is_none_is_refused_before_anything_is_read(store, url):
    for check in (store.check_location, lambda location: store.open(POLICY, location)):
        with pytest.raises(RevisionError, match="is no URL: Invalid IPv6 URL"):
            check(url)


class WebServer:
    """Serves a checkpoint's files, each in parts with a pause before every one."""

    def __init__(self, checkpoint: Path, *, pause_s: float, num_parts: int) -> None:
        self._checkpoint, self._pause_s, self._num_parts = checkpoint, pause_s, num_parts

    def __enter__(self) -> str:
        checkpoint, pause_s, num_parts = self._checkpoint, self._pause_s, self._num_parts
        stopping = self._stopping = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                content = (checkpoint / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                size = -(-len(content) // num_parts)
                for start in range(0, len(content), size):
                    if self.path.endswith("model.safetensors") and stopping.wait(pause_s):
                        return
                    self.wfile.write(content[start : start + size])

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def web_store(tmp_path: Path, read_timeout_s: float) -> ArtifactStore:
    limits = ArtifactLimits(read_timeout_s=read_timeout_s)
    return ArtifactStore(root=None, cache=tmp_path / "cache", limits=limits)


def test_a_fetch_may_take_as_long_as_it_likes_while_something_comes(kit, tmp_path):
    checkpoint = kit.write_checkpoint(tmp_path / "source")
    with WebServer(checkpoint, pause_s=0.2, num_parts=7) as url:
        started_s = time.monotonic()
        found = web_store(tmp_path, read_timeout_s=1.2).open(POLICY, url)
        assert time.monotonic() - started_s > 1.2
    assert found.directory == tmp_path / "cache" / found.revision


def test_a_fetch_from_a_server_that_says_nothing_more_ends(kit, tmp_path):
    checkpoint = kit.write_checkpoint(tmp_path / "source")
    with (
        WebServer(checkpoint, pause_s=30.0, num_parts=1) as url,
        pytest.raises(RevisionError, match=r"model\.safetensors cannot be fetched: .*Timeout"),
    ):
        web_store(tmp_path, read_timeout_s=0.2).open(POLICY, url)


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that a thread does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nobody says so
            await asyncio.sleep(0.01)


def staged(cache: Path) -> list[Path]:
    return [*cache.glob("fetch-*/checkpoint/model.safetensors")]


async def test_a_fetch_that_nobody_waits_for_any_more_ends_with_its_block(kit, tmp_path):
    cache = tmp_path / "cache"
    with WebServer(kit.write_checkpoint(tmp_path / "source"), pause_s=0.3, num_parts=7) as url:
        fetching = asyncio.create_task(web_store(tmp_path, read_timeout_s=20.0).opened(POLICY, url))
        await until(lambda: staged(cache))
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await until(lambda: not staged(cache))
    assert list(cache.iterdir()) == []


async def test_checkpoints_that_take_long_keep_no_thread_from_anybody_else(kit, tmp_path):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    store = web_store(tmp_path, read_timeout_s=20.0)
    with WebServer(kit.write_checkpoint(tmp_path / "source"), pause_s=20.0, num_parts=1) as url:
        fetching = [asyncio.create_task(store.opened(POLICY, url)) for _ in range(6)]
        await until(lambda: staged(tmp_path / "cache"))
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "a page") == "a page"
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)


async def test_what_a_killed_fetch_left_goes_and_what_another_process_fetches_stays(kit, tmp_path):
    cache = tmp_path / "cache"
    (cache / "fetch-dead" / "checkpoint").mkdir(parents=True)
    other, starting = (web_store(tmp_path, read_timeout_s=20.0) for _ in range(2))
    with WebServer(kit.write_checkpoint(tmp_path / "source"), pause_s=0.1, num_parts=7) as url:
        fetching = asyncio.create_task(other.opened(POLICY, url))
        await until(lambda: staged(cache))
        starting.forget_unfinished()
        assert staged(cache)
        found = await fetching
    starting.forget_unfinished()
    assert [*cache.iterdir()] == [found.directory]


def test_a_fetch_has_no_time_in_all(tmp_path):
    options = _web_options(ArtifactLimits(read_timeout_s=7.0))
    timeout = options["client_kwargs"]["timeout"]
    assert (timeout.total, timeout.sock_read, timeout.connect) == (None, 7.0, 7.0)


@pytest.mark.parametrize(("scheme", "module"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs"), ("abfs", "adlfs")])
def test_a_scheme_whose_library_is_not_installed_is_refused_naming_the_extra(tmp_path, monkeypatch, scheme, module):
    monkeypatch.setitem(sys.modules, module, None)
    store = ArtifactStore(root=None, cache=tmp_path / "cache")
    with pytest.raises(RevisionError, match=rf"reads {scheme}:// is installed .*'premotor\[object-store\]'"):
        store.open(POLICY, f"{scheme}://bucket/checkpoint")
