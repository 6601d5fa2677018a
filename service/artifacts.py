"""Where checkpoints come from: a directory of the store, or a URL, and never anything else.

Owns the way from a location in the registry to a directory on this machine: no path leaves the store's root, a
download is listed by its manifest, bounded, whole or not at all, and has the digest that was asked for. Does not own
what is in a checkpoint (revision.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.revision import REVISION_HEX_DIGITS, Revision, RevisionError, read_revision

if TYPE_CHECKING:
    from fsspec.core import OpenFile

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 4 * 1024 * 1024
_STAGING_PREFIX = "fetch-"
# Checkpoints that are fetched or read at a time; nobody else waits for these threads.
_NUM_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class ArtifactLimits:
    max_files: int = 1000
    max_bytes: int = 64 * 1024**3
    # Between one part of a file and the next. How long all of it takes is the network's business.
    read_timeout_s: float = 60.0
    # What fsspec may be asked for. Local files come from the store alone; s3, gs, az and abfs need the extra
    # `premotor[object-store]`.
    schemes: tuple[str, ...] = ("https", "http", "s3", "gs", "az", "abfs", "hf")


class ArtifactStore:
    """All but `opened` blocks: hashing and downloading take seconds to minutes."""

    def __init__(
        self, *, root: Path | None, cache: Path, kept: Path | None = None, limits: ArtifactLimits | None = None
    ) -> None:
        """`root` None means that nothing can be registered by directory; `cache` takes downloads.

        `kept` is a file that keeps what the operator named from one start to the next; None keeps nothing.
        """
        self._root = Path(os.path.realpath(root)) if root else None
        self._cache, self._kept = cache, kept
        self._limits = limits or ArtifactLimits()
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="artifacts")
        # What the operator named on the command line, outside of the root: now, or at an earlier start.
        self._named = _read_kept(kept) if kept is not None else set()

    def name(self, directory: Path) -> str:
        """A location for a directory that the operator gave on the command line."""
        location = os.path.realpath(directory)
        self._named.add(location)
        return location

    @property
    def named(self) -> tuple[Path, ...]:
        return tuple(map(Path, sorted(self._named)))

    def keep(self, locations: Collection[str]) -> None:
        """Of what was named, these are in use: the next start knows them without being told, and no others."""
        self._named &= {*locations}
        if self._kept is not None:
            staging = self._kept.with_suffix(".new")
            staging.write_text(json.dumps(sorted(self._named)))
            staging.replace(self._kept)

    async def opened(self, policy: str, location: str, *, revision: str = "", manifest_sha256: str = "") -> Revision:
        """What `open` returns or raises. Once it is cancelled, the work ends with the block it is at."""
        cancelled = threading.Event()

        def check_awaited() -> None:
            if cancelled.is_set():
                raise RevisionError("nobody waits for the checkpoint any more")

        work = partial(self.open, policy, location, revision=revision, manifest_sha256=manifest_sha256)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(work, between_blocks=check_awaited)
            )
        finally:
            cancelled.set()

    def open(
        self,
        policy: str,
        location: str,
        *,
        revision: str = "",
        manifest_sha256: str = "",
        between_blocks: Callable[[], None] = lambda: None,
    ) -> Revision:
        """The checkpoint at a location, read and checked; its digest must be the one given, if one is.

        What `between_blocks` raises ends it. Raises RevisionError, which says what is wrong with the checkpoint, or
        that it is not where it should be.
        """
        wanted = manifest_sha256 or revision
        if _is_url(location):
            directory = self._fetched(location, wanted, between_blocks)
        else:
            directory = Path(location) if location in self._named else self._inside_root(location)
        found = read_revision(directory, policy=policy, between_blocks=between_blocks)
        if wanted and not manifest_digest(found).startswith(wanted):
            raise RevisionError(f"the checkpoint is revision {found.revision}, expected {wanted[:REVISION_HEX_DIGITS]}")
        return found

    def check_location(self, location: str) -> None:
        """Raises RevisionError for a location that cannot be in the store, before anything is read."""
        if _is_url(location):
            self._check_scheme(location)
        elif location not in self._named:
            self._inside_root(location)

    def _inside_root(self, location: str) -> Path:
        path = PurePosixPath(location)
        named = f", or this one named by --policy NAME={location}" if path.is_absolute() else ""
        if self._root is None:
            raise RevisionError(
                f"location is {location!r} and the service has no store, expected --store DIR for checkpoints named by "
                f"directory{named}"
            )
        if not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
            raise RevisionError(f"location is {location!r}, expected a plain path inside the store{named}")
        directory = Path(os.path.realpath(self._root / location))
        if not directory.is_relative_to(self._root) or directory == self._root:
            raise RevisionError(f"location is {location!r}, which leaves the store")
        if not directory.is_dir():
            raise RevisionError(f"location is {location!r}, and the store has no such directory")
        return directory

    def _check_scheme(self, url: str) -> None:
        try:
            scheme = urlsplit(url).scheme
        except ValueError as error:
            raise RevisionError(f"location is {url!r}, which is no URL: {error}") from None
        if scheme not in self._limits.schemes:
            schemes = ", ".join(self._limits.schemes)
            raise RevisionError(f"location is a URL with scheme {scheme!r}, expected one of {schemes}")

    def _fetched(self, url: str, wanted: str, between_blocks: Callable[[], None]) -> Path:
        self._check_scheme(url)
        if len(wanted) >= REVISION_HEX_DIGITS and (known := self._cache / wanted[:REVISION_HEX_DIGITS]).is_dir():
            return known
        self._cache.mkdir(parents=True, exist_ok=True)
        with (
            _locked(self._cache, alone=False),
            tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=self._cache) as staging,
        ):
            directory = Path(staging) / "checkpoint"
            directory.mkdir()
            digest = _Download(url, directory, self._limits, between_blocks).run()
            if wanted and not digest.startswith(wanted):
                raise RevisionError(
                    f"{url} is revision {digest[:REVISION_HEX_DIGITS]}, expected {wanted[:REVISION_HEX_DIGITS]}"
                )
            target = self._cache / digest[:REVISION_HEX_DIGITS]
            try:
                directory.rename(target)
            except OSError:
                # Another process that shares the cache was first.
                if not target.is_dir():
                    raise
        return target

    def downloads(self) -> frozenset[str]:
        """The revisions that were fetched and are still here."""
        if not self._cache.is_dir():
            return frozenset()
        return frozenset(path.name for path in self._cache.iterdir() if _is_revision(path.name))

    def forget(self, revision: str) -> None:
        """Frees the download of a revision, if there is one."""
        if _is_revision(revision):
            shutil.rmtree(self._cache / revision, ignore_errors=True)

    def forget_unfinished(self) -> None:
        """Removes what fetches left whose process was killed; nothing while any process fetches into this cache."""
        if not self._cache.is_dir():
            return
        with _locked(self._cache, alone=True) as is_locked:
            for staging in self._cache.glob(f"{_STAGING_PREFIX}*") if is_locked else ():
                shutil.rmtree(staging, ignore_errors=True)


class _Download:
    """One checkpoint from a URL: the manifest first, then what it lists, file by file."""

    def __init__(self, url: str, directory: Path, limits: ArtifactLimits, between_blocks: Callable[[], None]) -> None:
        self._url, self._directory, self._limits = url.rstrip("/"), directory, limits
        self._between_blocks = between_blocks
        self._options = _web_options(limits) if urlsplit(url).scheme in ("http", "https") else {}

    def run(self) -> str:
        """The sha256 of the manifest."""
        manifest = self._directory / _MANIFEST
        self._fetch(_MANIFEST, manifest, _MAX_MANIFEST_BYTES)
        content = manifest.read_bytes()
        for name, num_bytes in self._listed(content).items():
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(name, path, num_bytes)
        return hashlib.sha256(content).hexdigest()

    def _listed(self, manifest: bytes) -> dict[str, int]:
        """File name to size. Contents are checked by revision.py; here nothing may grow or escape."""
        try:
            files: dict[str, Any] = json.loads(manifest)["files"]
            listed = {name: int(entry["num_bytes"]) for name, entry in files.items()}
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
            raise RevisionError(f"{self._url}: {_MANIFEST} lists no files as a checkpoint's does") from None
        for name in listed:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or path.as_posix() != name:
                raise RevisionError(f"{self._url}: {_MANIFEST} lists {name!r}, expected a plain path")
        if any(num_bytes < 0 for num_bytes in listed.values()):
            raise RevisionError(f"{self._url}: {_MANIFEST} lists a file of less than no bytes")
        if len(listed) > self._limits.max_files or sum(listed.values()) > self._limits.max_bytes:
            raise RevisionError(
                f"{self._url} has {len(listed)} files of {sum(listed.values())} bytes, expected at most "
                f"{self._limits.max_files} of {self._limits.max_bytes}"
            )
        return listed

    def _fetch(self, name: str, path: Path, max_bytes: int) -> None:
        try:
            with self._open(name) as source, path.open("wb") as target:
                left = max_bytes
                while block := source.read(_BLOCK_BYTES):
                    self._between_blocks()
                    left -= len(block)
                    if left < 0:
                        raise RevisionError(f"{self._url}: {name} has more than {max_bytes} bytes")
                    target.write(block)
                target.flush()
                # What is cut short behind a name that says its digest would never be fetched again.
                os.fsync(target.fileno())
        except RevisionError:
            raise
        except ImportError as error:
            raise RevisionError(
                f"{self._url}: nothing that reads {urlsplit(self._url).scheme}:// is installed ({error}): "
                "pip install 'premotor[object-store]'"
            ) from None
        except Exception as error:  # fsspec's filesystems raise whatever their libraries do
            raise RevisionError(f"{self._url}: {name} cannot be fetched: {type(error).__name__}: {error}") from None

    def _open(self, name: str) -> OpenFile:
        import fsspec  # takes a while to import, and few services fetch

        opened = fsspec.open(f"{self._url}/{name}", mode="rb", **self._options)
        assert not isinstance(opened, list), "one name is one file"
        return opened


def manifest_digest(revision: Revision) -> str:
    return hashlib.sha256((revision.directory / _MANIFEST).read_bytes()).hexdigest()


@contextmanager
def _locked(directory: Path, *, alone: bool) -> Iterator[bool]:
    """Whether it is locked, `alone` or beside others; the kernel unlocks it however this process ends.

    Not where others have it, when it is to be alone, nor where directories cannot be locked.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        is_locked = True
    except OSError:
        is_locked = False
    try:
        yield is_locked
    finally:
        os.close(descriptor)


def _is_url(location: str) -> bool:
    return "://" in location


def _is_revision(name: str) -> bool:
    return len(name) == REVISION_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in name)


def _web_options(limits: ArtifactLimits) -> dict[str, Any]:
    from aiohttp import ClientTimeout  # fsspec's own, and as slow to import

    # Left alone it gives a file five minutes, however well it comes.
    timeout = ClientTimeout(total=None, connect=limits.read_timeout_s, sock_read=limits.read_timeout_s)
    # A plain web server knows no ranges: its files are streamed.
    return {"block_size": 0, "client_kwargs": {"timeout": timeout}}


def _read_kept(path: Path) -> set[str]:
    """What an earlier start kept. Raises RevisionError for a file of somebody else."""
    try:
        kept = json.loads(path.read_bytes())
    except FileNotFoundError:
        return set()
    except ValueError:
        kept = None
    if not (isinstance(kept, list) and all(isinstance(location, str) for location in kept)):
        raise RevisionError(f"{path} is not what the service keeps there: remove it and name what it served")
    return set(kept)
