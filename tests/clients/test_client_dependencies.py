"""A robot installs grpcio, protobuf and numpy, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

ALLOWED = {"numpy", "grpc", "google", "premotor", "typing_extensions"}
# Cython registers these for its own use; they are part of grpcio.
CYTHON = ("_cython_", "cython_runtime")


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
    foreign = {name for name in loaded - ALLOWED - sys.stdlib_module_names if not name.startswith(CYTHON)}
    assert foreign == set()
    assert {"numpy", "grpc", "google", "premotor"} <= loaded
