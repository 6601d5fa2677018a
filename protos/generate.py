"""Writes the Python code of the wire contract next to its .proto files, or checks that what is committed is current.

Owns which generator makes the committed code. The wheel ships that code, so its header pins the oldest protobuf and
grpcio that a robot may have: the generator's version is fixed here and a change of it is a change of the dependencies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

GRPCIO_TOOLS_VERSION = "1.81.1"
PROTOS = Path(__file__).resolve().parent
_GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


class GenerationError(Exception):
    """The code cannot be generated; the message says what to do."""


def generate(protos: Path = PROTOS) -> dict[Path, bytes]:
    """Generated code by its path relative to `protos`, for every .proto under it."""
    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    if not sources:
        raise GenerationError(f"no .proto file under {protos}")
    protoc = _protoc()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        includes = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
        if protoc.main(["protoc", *includes, *arguments, *sources]) != 0:
            raise GenerationError("protoc refused the .proto files, see above")
        return {path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*") if path.is_file()}


def stale_files(protos: Path = PROTOS) -> list[Path]:
    """Paths relative to `protos` that are missing, not what the .proto files say, or made by none of them."""
    expected = generate(protos)
    present = {path.relative_to(protos) for pattern in _GENERATED for path in protos.rglob(pattern)}
    differing = [path for path in expected if path not in present or (protos / path).read_bytes() != expected[path]]
    return sorted({*differing, *(present - expected.keys())})


def write(protos: Path = PROTOS) -> list[Path]:
    """Brings the generated code up to date; the paths that changed, relative to `protos`."""
    expected = generate(protos)
    stale = stale_files(protos)
    for path in stale:
        if path in expected:
            (protos / path).write_bytes(expected[path])
        else:
            (protos / path).unlink()
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python protos/generate.py", description="Generates the wire's Python code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a generated file is stale")
    check = parser.parse_args(arguments).check
    try:
        changed = stale_files() if check else write()
    except GenerationError as error:
        print(f"protos/generate.py: {error}", file=sys.stderr)
        return 1
    for path in changed:
        print(f"{'stale' if check else 'wrote'} {Path('protos') / path}")
    if check and changed:
        print("run `make protos` and commit what it writes", file=sys.stderr)
        return 1
    return 0


def _protoc():
    try:
        installed = version("grpcio-tools")
    except PackageNotFoundError:
        installed = "absent"
    if installed != GRPCIO_TOOLS_VERSION:
        raise GenerationError(
            f"grpcio-tools is {installed}, expected {GRPCIO_TOOLS_VERSION}: "
            f"pip install grpcio-tools=={GRPCIO_TOOLS_VERSION}"
        )
    from grpc_tools import protoc

    return protoc


if __name__ == "__main__":
    sys.exit(main())
