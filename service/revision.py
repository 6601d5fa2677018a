"""A checkpoint directory as the service sees it: whole, unchanged, and described.

Owns the check that a directory holds exactly the files that its manifest lists, and the published description of the
policy in it. Does not own weights, statistics or the tokenizer (the policy reads those, where torch is), nor which
revision serves (policies.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from premotor.v1 import policy_pb2

REVISION_HEX_DIGITS = 12
REQUIRED_FILES = ("config.json", "embodiments.json", "model.safetensors", "probe.npz")
_MANIFEST = "manifest.json"
_MAX_JSON_BYTES = 16 * 1024 * 1024
_HASH_BLOCK_BYTES = 1024 * 1024


class RevisionError(Exception):
    """A checkpoint directory cannot be served. The message names the file; it is for the operator, not for callers."""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One immutable checkpoint that has been checked."""

    directory: Path
    # The first 12 hex digits of the manifest's sha256.
    revision: str
    # What the gateway publishes, and validates requests against. Embodiments are in the checkpoint's order.
    description: policy_pb2.Policy


async def load_revision(directory: Path, *, policy: str) -> Revision:
    """`read_revision` in a thread: hashing a large checkpoint takes seconds."""
    return await asyncio.to_thread(read_revision, directory, policy=policy)


def read_revision(directory: Path, *, policy: str, between_blocks: Callable[[], None] = lambda: None) -> Revision:
    """Checks every file of a checkpoint and reads its description, which is published under the name `policy`.

    What `between_blocks` raises ends it. Raises RevisionError for a missing, changed, unlisted or escaping file, and
    for JSON that does not fit its format.
    """
    root = Path(os.path.realpath(directory))
    if not root.is_dir():
        raise RevisionError(f"{directory} is not a directory, expected a checkpoint")
    manifest_bytes = _read_json_bytes(root, _MANIFEST)
    manifest = _parse(_Manifest, manifest_bytes, _MANIFEST)
    _check_listing(root, manifest)
    json_bytes = {name: _read_json_bytes(root, name) for name in ("config.json", "embodiments.json")}
    for name, entry in manifest.files.items():
        _check_file(root, name, entry, json_bytes.get(name), between_blocks)
    revision = hashlib.sha256(manifest_bytes).hexdigest()[:REVISION_HEX_DIGITS]
    description = _describe(
        policy=policy,
        revision=revision,
        variant=manifest.variant,
        config=_parse(_Config, json_bytes["config.json"], "config.json"),
        embodiments=_parse(_Embodiments, json_bytes["embodiments.json"], "embodiments.json"),
    )
    return Revision(directory=root, revision=revision, description=description)


def schema_digest(description: policy_pb2.Policy) -> str:
    """sha256, as hex, of what a client relies on: everything but the revision and how it was trained.

    The methods of real-time chunking are left out: every revision has guidance, and prefix where max_inference_delay,
    which counts, is not 0. So a checkpoint from before them keeps its digest, and one that gains a prefix changes it.
    """
    relied_on = policy_pb2.Policy()
    relied_on.CopyFrom(description)
    for field in ("revision", "schema_digest", "variant", "real_time_chunking_methods"):
        relied_on.ClearField(field)
    return hashlib.sha256(relied_on.SerializeToString(deterministic=True)).hexdigest()


class _Json(BaseModel):
    # A checkpoint says more than the service reads; the policy, which owns the format, refuses what it does not know.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class _FileEntry(_Json):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    num_bytes: Annotated[int, Field(ge=0)]


class _Manifest(_Json):
    format_version: Literal[1]
    variant: str = ""
    files: dict[str, _FileEntry]


class _Config(_Json):
    format_version: Literal[1]
    action_horizon: Annotated[int, Field(ge=1, le=65_536)]
    execution_horizon: Annotated[int, Field(ge=1)]
    history_steps: Annotated[int, Field(ge=0, le=65_536)]
    num_inference_steps: Annotated[int, Field(ge=1)]
    max_inference_steps: Annotated[int, Field(ge=1, le=65_536)]
    # Absent where the policy was not trained to continue a prefix.
    max_inference_delay: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.execution_horizon > self.action_horizon:
            raise ValueError(f"execution_horizon {self.execution_horizon} exceeds action_horizon {self.action_horizon}")
        if self.num_inference_steps > self.max_inference_steps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} exceeds max_inference_steps {self.max_inference_steps}"
            )
        if self.max_inference_delay >= self.action_horizon:
            raise ValueError(
                f"max_inference_delay {self.max_inference_delay} leaves nothing of action_horizon {self.action_horizon}"
            )
        return self


class _Camera(_Json):
    name: Annotated[str, Field(min_length=1)]
    height: Annotated[int, Field(ge=1, le=65_536)]
    width: Annotated[int, Field(ge=1, le=65_536)]


# A checkpoint writes the wire's enum names in lower case, without their prefix; the first value is UNSPECIFIED.
_KINDS = {name.removeprefix("KIND_").lower() for name in policy_pb2.Group.Kind.keys()[1:]}
_REPRESENTATIONS = {name.removeprefix("REPRESENTATION_").lower() for name in policy_pb2.Group.Representation.keys()[1:]}


class _Group(_Json):
    name: Annotated[str, Field(min_length=1)]
    dim: Annotated[int, Field(ge=1, le=65_536)]
    unit: str
    kind: str
    representation: str
    lower_limit: list[float] = []
    upper_limit: list[float] = []
    step_limit: list[Annotated[float, Field(ge=0)]] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("lower_limit", "upper_limit", "step_limit"):
            limit = getattr(self, name)
            if limit and len(limit) != self.dim:
                raise ValueError(f"group {self.name!r}: {name} has {len(limit)} values, expected {self.dim} or none")
        for key, names in (("kind", _KINDS), ("representation", _REPRESENTATIONS)):
            if getattr(self, key) not in names:
                found = getattr(self, key)
                raise ValueError(f"group {self.name!r}: {key} is {found!r}, expected one of {sorted(names)}")
        if self.step_limit and self.representation != "absolute":
            raise ValueError(f"group {self.name!r} is {self.representation}, only absolute groups have a step_limit")
        return self


class _Spec(_Json):
    name: Annotated[str, Field(min_length=1)]
    cameras: Annotated[list[_Camera], Field(min_length=1)]
    state: Annotated[list[_Group], Field(min_length=1)]
    action: Annotated[list[_Group], Field(min_length=1)]
    control_rate_hz: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for part, members in (("camera", self.cameras), ("state group", self.state), ("action group", self.action)):
            _check_unique(f"embodiment {self.name!r}: {part}", [member.name for member in members])
        if limited := [group.name for group in self.state if group.step_limit]:
            raise ValueError(f"embodiment {self.name!r}: state groups {limited} have a step_limit, which actions have")
        return self


class _EmbodimentEntry(_Json):
    spec: _Spec


class _Embodiments(_Json):
    embodiments: Annotated[list[_EmbodimentEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_unique("embodiment", [entry.spec.name for entry in self.embodiments])
        return self


_Parsed = TypeVar("_Parsed", bound=_Json)


def _check_unique(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{what} names repeat: {names}")


def _read_json_bytes(root: Path, name: str) -> bytes:
    path = root / name
    num_bytes = _regular_file_bytes(path, name)
    if num_bytes > _MAX_JSON_BYTES:
        raise RevisionError(f"{name} has {num_bytes} bytes, expected at most {_MAX_JSON_BYTES}")
    return path.read_bytes()


def _parse(model: type[_Parsed], content: bytes, name: str) -> _Parsed:
    try:
        fields = json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_object_without_repeats)
        return model.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise RevisionError(f"{name} does not fit its format: {faults}") from None
    except (ValueError, RecursionError) as error:
        raise RevisionError(f"{name} is not JSON: {error}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(f"a key repeats among {[key for key, _ in pairs]}")
    return fields


def _check_listing(root: Path, manifest: _Manifest) -> None:
    for name in manifest.files:
        _check_name(name)
    for name in REQUIRED_FILES:
        if name not in manifest.files:
            raise RevisionError(f"{_MANIFEST} does not list {name}, which every checkpoint has")
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        if name != _MANIFEST and name not in manifest.files:
            raise RevisionError(f"{name} is in the checkpoint but not in its {_MANIFEST}")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if name == _MANIFEST:
        raise RevisionError(f"{_MANIFEST} lists itself, which no digest can cover")
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\\" in name or "\0" in name:
        raise RevisionError(f"{_MANIFEST} lists {name!r}, expected a plain path inside the checkpoint")


def _walk(root: Path) -> list[Path]:
    """Every file below `root`. Raises RevisionError for what is neither a directory nor a regular file."""
    files = []
    for directory, subdirectories, names in os.walk(root, onerror=_refuse_unreadable):
        for name in (*subdirectories, *names):
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
                raise RevisionError(f"{path.relative_to(root).as_posix()} is {kind}, expected a file of the checkpoint")
            if stat.S_ISREG(mode):
                files.append(path)
    return files


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise RevisionError(f"{error.filename} cannot be read: {error.strerror}")


def _regular_file_bytes(path: Path, name: str) -> int:
    try:
        status = path.lstat()
    except OSError:
        raise RevisionError(f"{name} is missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise RevisionError(f"{name} is not a regular file, expected a file of the checkpoint")
    return status.st_size


def _check_file(
    root: Path, name: str, entry: _FileEntry, content: bytes | None, between_blocks: Callable[[], None]
) -> None:
    """`content` is what has been read already: the bytes that are used must be the bytes that were checked."""
    path = root / name
    num_bytes = _regular_file_bytes(path, name)
    if num_bytes != entry.num_bytes:
        raise RevisionError(f"{name} has {num_bytes} bytes, its {_MANIFEST} says {entry.num_bytes}")
    digest = hashlib.sha256(content).hexdigest() if content is not None else _file_digest(path, name, between_blocks)
    if digest != entry.sha256:
        raise RevisionError(f"{name} has changed: its sha256 is {digest}, its {_MANIFEST} says {entry.sha256}")


def _file_digest(path: Path, name: str, between_blocks: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                between_blocks()
                digest.update(block)
    except OSError as error:
        raise RevisionError(f"{name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _describe(
    *, policy: str, revision: str, variant: str, config: _Config, embodiments: _Embodiments
) -> policy_pb2.Policy:
    description = policy_pb2.Policy(
        name=policy,
        revision=revision,
        embodiments=[_describe_embodiment(entry.spec) for entry in embodiments.embodiments],
        history_steps=config.history_steps,
        action_horizon=config.action_horizon,
        execution_horizon=config.execution_horizon,
        num_inference_steps=config.num_inference_steps,
        max_inference_steps=config.max_inference_steps,
        variant=variant,
        real_time_chunking_methods=["METHOD_GUIDANCE"] + ["METHOD_PREFIX"] * bool(config.max_inference_delay),
        max_inference_delay=config.max_inference_delay,
    )
    description.schema_digest = schema_digest(description)
    return description


def _describe_embodiment(spec: _Spec) -> policy_pb2.Embodiment:
    return policy_pb2.Embodiment(
        name=spec.name,
        cameras=[policy_pb2.Camera(name=c.name, height=c.height, width=c.width) for c in spec.cameras],
        state=[_describe_group(group) for group in spec.state],
        action=[_describe_group(group) for group in spec.action],
        control_rate_hz=spec.control_rate_hz,
    )


def _describe_group(group: _Group) -> policy_pb2.Group:
    return policy_pb2.Group(
        name=group.name,
        dim=group.dim,
        unit=group.unit,
        lower_limit=group.lower_limit,
        upper_limit=group.upper_limit,
        step_limit=group.step_limit,
        kind=f"KIND_{group.kind.upper()}",
        representation=f"REPRESENTATION_{group.representation.upper()}",
    )
