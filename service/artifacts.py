"""Where checkpoints come from: a directory of the store, or a URL, and never anything else.

Owns the way from a location in the registry to a directory on this machine: no path leaves the store's root, a
download is listed by its manifest, bounded, whole or not at all, and has the digest that was asked for. Does not own
what is in a checkpoint (revision.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.revision import REVISION_HEX_DIGITS, Revision, RevisionError, read_revision

if TYPE_CHECKING:
    from fsspec.core import OpenFile

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ArtifactLimits:
    max_files: int = 1000
    max_bytes: int = 64 * 1024**3
    # What fsspec may be asked for. Local files come from the store alone.
    schemes: tuple[str, ...] = ("https", "http", "s3", "gs", "az", "abfs", "hf")


class ArtifactStore:
    """Blocking: hashing and downloading take seconds to minutes."""

    def __init__(self, *, root: Path | None, cache: Path, limits: ArtifactLimits | None = None) -> None:
        """`root` None means that nothing can be registered by directory; `cache` takes downloads."""
        self._root = Path(os.path.realpath(root)) if root else None
        self._cache = cache
        self._limits = limits or ArtifactLimits()
        # What the operator named at start, outside of the root: trusted, for this process only.
        self._named: dict[str, Path] = {}

    def name(self, directory: Path) -> str:
        """A location for a directory that the operator gave on the command line."""
        location = str(Path(os.path.realpath(directory)))
        self._named[location] = Path(location)
        return location

    def open(self, policy: str, location: str, *, revision: str = "", manifest_sha256: str = "") -> Revision:
        """The checkpoint at a location, read and checked; its digest must be the one given, if one is.

        Raises RevisionError, which says what is wrong with it, or that it is not where it should be.
        """
        wanted = manifest_sha256 or revision
        if _is_url(location):
            directory = self._fetched(location, wanted)
        else:
            directory = self._named.get(location) or self._inside_root(location)
        found = read_revision(directory, policy=policy)
        if wanted and not manifest_digest(found).startswith(wanted):
            raise RevisionError(f"the checkpoint is revision {found.revision}, expected {wanted[:REVISION_HEX_DIGITS]}")
        return found

    def check_location(self, location: str) -> None:
        """Raises RevisionError for a location that cannot be in the store, before anything is read."""
        if not _is_url(location) and location not in self._named:
            self._inside_root(location)

    def _inside_root(self, location: str) -> Path:
        if self._root is None:
            raise RevisionError("the service has no store, expected --store DIR for checkpoints named by directory")
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
            raise RevisionError(f"location is {location!r}, expected a plain path inside the store")
        directory = Path(os.path.realpath(self._root / location))
        if not directory.is_relative_to(self._root) or directory == self._root:
            raise RevisionError(f"location is {location!r}, which leaves the store")
        if not directory.is_dir():
            raise RevisionError(f"location is {location!r}, and the store has no such directory")
        return directory

    def _fetched(self, url: str, wanted: str) -> Path:
        scheme = urlsplit(url).scheme
        if scheme not in self._limits.schemes:
            schemes = ", ".join(self._limits.schemes)
            raise RevisionError(f"location is a URL with scheme {scheme!r}, expected one of {schemes}")
        if len(wanted) >= REVISION_HEX_DIGITS and (known := self._cache / wanted[:REVISION_HEX_DIGITS]).is_dir():
            return known
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self._cache) as staging:
            directory = Path(staging) / "checkpoint"
            directory.mkdir()
            digest = _Download(url, directory, self._limits).run()
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

    def forget(self, revision: str) -> None:
        """Frees the download of a revision, if there is one."""
        if len(revision) == REVISION_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in revision):
            shutil.rmtree(self._cache / revision, ignore_errors=True)


class _Download:
    """One checkpoint from a URL: the manifest first, then what it lists, file by file."""

    def __init__(self, url: str, directory: Path, limits: ArtifactLimits) -> None:
        self._url, self._directory, self._limits = url.rstrip("/"), directory, limits
        # A plain web server knows no ranges: its files are streamed.
        self._options: dict[str, Any] = {"block_size": 0} if urlsplit(url).scheme in ("http", "https") else {}

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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RevisionError(f"{self._url}: {_MANIFEST} lists no files as a checkpoint's does") from None
        for name in listed:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or path.as_posix() != name:
                raise RevisionError(f"{self._url}: {_MANIFEST} lists {name!r}, expected a plain path")
        if len(listed) > self._limits.max_files or not 0 <= sum(listed.values()) <= self._limits.max_bytes:
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
                    left -= len(block)
                    if left < 0:
                        raise RevisionError(f"{self._url}: {name} has more than {max_bytes} bytes")
                    target.write(block)
        except RevisionError:
            raise
        except Exception as error:  # fsspec's filesystems raise whatever their libraries do
            raise RevisionError(f"{self._url}: {name} cannot be fetched: {type(error).__name__}: {error}") from None

    def _open(self, name: str) -> OpenFile:
        import fsspec  # takes a while to import, and few services fetch

        opened = fsspec.open(f"{self._url}/{name}", mode="rb", **self._options)
        assert not isinstance(opened, list), "one name is one file"
        return opened


def manifest_digest(revision: Revision) -> str:
    return hashlib.sha256((revision.directory / _MANIFEST).read_bytes()).hexdigest()


def _is_url(location: str) -> bool:
    return "://" in location
