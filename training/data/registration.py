"""A data set that stays where it is: the file in a run that names its directory, its bytes, its body and its words.

Owns that file and the digest of a data set's content. Whether a data set is fit for training is training/own_data's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from training.data.lerobot.layout import DatasetError
from training.data.lerobot.reader import LeRobotReader
from training.json_file import write_json

REGISTRATION = "registration.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What a run keeps of a data set that is not its own.

    `stat_sha256` digests names, sizes and times of change, so that content is read again only when one of them moved.
    `instruction` replaces the data set's own words when it is not empty; otherwise `instruction_column` holds, frame by
    frame, the index of a task.
    """

    directory: str
    content_sha256: str
    stat_sha256: str
    task: str
    embodiment: Mapping[str, Any]
    instruction: str = ""
    instruction_column: str = "task_index"

    @property
    def annotations(self) -> dict[str, Any]:
        """What the reader takes in place of the annotations that our own data sets carry."""
        names = ("task", "embodiment", "instruction", "instruction_column")
        return {name: getattr(self, name) for name in names}

    @property
    def source_sha256(self) -> str:
        """Changes with the data, the spec and the words, that is with everything a pack is made from."""
        made_from = {"content": self.content_sha256, **self.annotations}
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Raises FileNotFoundError when the data set is gone, DatasetError when its content is another."""
        root = Path(self.directory)
        if not root.is_dir():
            raise FileNotFoundError(
                f"data set {root} of task {self.task!r} is not there any more; import it again from where it is now"
            )
        if stat_sha256(root) != self.stat_sha256 and content_sha256(root) != self.content_sha256:
            raise DatasetError(
                f"data set {root} of task {self.task!r} changed after it was imported; import it again, which checks it"
            )

    def write(self, dataset: Path) -> None:
        write_json(dataset / REGISTRATION, {"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, dataset: Path) -> Registration:
        """Raises DatasetError for a file of another format or with other keys."""
        path = dataset / REGISTRATION
        values = json.loads(path.read_text())
        version = values.pop("format_version", None)
        known = {field.name for field in fields(cls)}
        if version != FORMAT_VERSION or set(values) != known:
            raise DatasetError(
                f"{path}: format_version {version} with keys {sorted(values)}, expected {FORMAT_VERSION} with "
                f"{sorted(known)}; import the data set again"
            )
        return cls(**values)


def is_registered(dataset: Path) -> bool:
    return (dataset / REGISTRATION).is_file()


def open_reader(dataset: Path) -> LeRobotReader:
    """The reader of a data set, or of the one that a registration names, with the registration's spec and words."""
    if not is_registered(dataset):
        return LeRobotReader(dataset)
    registration = Registration.read(dataset)
    return LeRobotReader(registration.directory, annotations=registration.annotations)


def source_sha256(dataset: Path) -> str:
    """What a pack made of `dataset` must agree with. Raises as Registration.check_unchanged does."""
    if not is_registered(dataset):
        return content_sha256(dataset)
    registration = Registration.read(dataset)
    registration.check_unchanged()
    return registration.source_sha256


def content_sha256(root: Path) -> str:
    """One digest of every file's path and content, so that any change of a data set is seen."""
    digest = hashlib.sha256()
    for path in _files(root):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def stat_sha256(root: Path) -> str:
    """One digest of every file's path, size and time of change: quick, and different whenever a file was written."""
    digest = hashlib.sha256()
    for path in _files(root):
        stat = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    """Hidden files are a downloader's or an editor's, not the data set's."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path
