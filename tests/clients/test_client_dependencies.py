"""A robot installs grpcio, protobuf and numpy, and nothing else."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

ALLOWED = {"numpy", "grpc", "google", "premotor", "typing_extensions"}
# Cython registers these for its own use; they are part of grpcio.
CYTHON = ("_cython_", "cython_runtime")
# What multiprocessing calls __main__ as well.
MULTIPROCESSING = "__mp_main__"


def test_importing_the_client_loads_nothing_but_its_three_dependencies() -> None:
    # grpc imports these by itself where they are installed; hidden, they cannot be needed.
    program = """
import json, sys
sys.modules.update(dict.fromkeys(("grpc_tools", "grpc_health", "grpc_reflection", "grpc_status")))
before = set(sys.modules)
import premotor.client, premotor.client.__main__, premotor.client.bench
print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(json.loads(result.stdout))
    known = ALLOWED | sys.stdlib_module_names | {MULTIPROCESSING}
    foreign = {name for name in loaded - known if not name.startswith(CYTHON)}
    assert foreign == set()
    assert {"numpy", "grpc", "google", "premotor"} <= loaded


def test_what_a_robot_downloads_is_under_one_megabyte() -> None:
    root, wheel = Path(__file__).resolve().parents[2], io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in ("protos/premotor", "clients/python/premotor"):
            for path in (root / folder).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path)
    assert wheel.tell() < 1_000_000
