"""The committed code is what policy.proto makes, and policy.proto explains itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTOS = Path(__file__).resolve().parents[2] / "protos"
# Field numbers of descriptor.proto, of which source locations are made.
MESSAGE, MESSAGE_FIELD, SERVICE, METHOD = 4, 2, 6, 2


@pytest.fixture
def copied_protos(tmp_path: Path) -> Path:
    copy = tmp_path / "protos"
    shutil.copytree(PROTOS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run_generator(protos: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(protos / "generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_committed_code_is_current() -> None:
    result = run_generator(PROTOS, "--check")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_a_changed_proto_fails_the_check_which_names_the_stale_files_and_writes_nothing(copied_protos: Path) -> None:
    proto = copied_protos / "premotor/v1/policy.proto"
    proto.write_text(proto.read_text().replace("int32 height = 2;", "int32 height_pixels = 2;"))
    before = (copied_protos / "premotor/v1/policy_pb2.py").read_bytes()
    result = run_generator(copied_protos, "--check")
    assert result.returncode == 1
    assert "protos/premotor/v1/policy_pb2.py\n" in result.stdout
    assert "protos/premotor/v1/policy_pb2.pyi\n" in result.stdout
    assert "policy_pb2_grpc.py" not in result.stdout
    assert (copied_protos / "premotor/v1/policy_pb2.py").read_bytes() == before


def test_generating_brings_a_changed_proto_up_to_date(copied_protos: Path) -> None:
    proto = copied_protos / "premotor/v1/policy.proto"
    proto.write_text(proto.read_text().replace("int32 height = 2;", "int32 height_pixels = 2;"))
    assert run_generator(copied_protos).returncode == 0
    assert "height_pixels" in (copied_protos / "premotor/v1/policy_pb2.pyi").read_text()
    assert run_generator(copied_protos, "--check").returncode == 0


def test_code_that_no_proto_makes_is_stale(copied_protos: Path) -> None:
    orphan = copied_protos / "premotor/v1/gone_pb2.py"
    orphan.write_text("")
    result = run_generator(copied_protos, "--check")
    assert (result.returncode, result.stdout) == (1, "stale protos/premotor/v1/gone_pb2.py\n")
    assert run_generator(copied_protos).returncode == 0
    assert not orphan.exists()


def test_a_broken_proto_fails_without_a_traceback(copied_protos: Path) -> None:
    (copied_protos / "premotor/v1/policy.proto").write_text("message {")
    result = run_generator(copied_protos, "--check")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_the_generated_code_needs_protobuf_6() -> None:
    header = (PROTOS / "premotor/v1/policy_pb2.py").read_text()
    assert "# Protobuf Python Version: 6." in header


def test_every_field_and_every_rpc_is_explained(tmp_path: Path) -> None:
    from grpc_tools import protoc

    descriptors = tmp_path / "descriptors.pb"
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    options = [f"--descriptor_set_out={descriptors}", "--include_source_info", "premotor/v1/policy.proto"]
    assert protoc.main(["protoc", *includes, *options]) == 0
    (file,) = FileDescriptorSet.FromString(descriptors.read_bytes()).file
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
    unexplained = [
        f"{message.name}.{field.name}"
        for i, message in enumerate(file.message_type)
        for j, field in enumerate(message.field)
        if not comments[(MESSAGE, i, MESSAGE_FIELD, j)].strip()
    ]
    assert unexplained == []
    methods = file.service[0].method
    assert {method.name for method in methods} == {"PredictChunk", "StreamChunks", "GetPolicy", "ListPolicies"}
    without_codes = [
        method.name for i, method in enumerate(methods) if "Status codes" not in comments[(SERVICE, 0, METHOD, i)]
    ]
    assert without_codes == []
