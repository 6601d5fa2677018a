"""Where a tritonserver is on this machine, and the environment it needs.

Owns finding the executable and arranging its backend directory. Does not start anything (server.py does).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from service.model_settings import openmp_environment

_IMAGE_EXECUTABLE = Path("/opt/tritonserver/bin/tritonserver")


class TritonNotFoundError(Exception):
    """This machine has no tritonserver that can run policies. The message says how to get one."""


@dataclass(frozen=True, kw_only=True)
class TritonInstallation:
    """A tritonserver; `wheel` is the `pytriton/tritonserver` directory when it comes from the nvidia-pytriton wheel."""

    executable: Path
    wheel: Path | None = None

    def backend_directory(self, parent: Path) -> Path | None:
        """Arranges the wheel's python backend below `parent` as Triton expects it; None where Triton has its own."""
        if self.wheel is None:
            return None
        backends = parent / "backends"
        python = backends / "python"
        python.mkdir(parents=True, exist_ok=True)
        # Links, not copies: the stub finds its libraries relative to its place in the wheel.
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            (python / name).symlink_to(self.wheel / "backends" / "python" / name)
        (python / "triton_python_backend_stub").symlink_to(_stub(self.wheel))
        return backends

    def environment(self, *, threads: int) -> dict[str, str]:
        """The environment of tritonserver and its stubs."""
        environment = dict(os.environ)
        # The stub's interpreter takes its site-packages from the first python on PATH.
        environment["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), environment.get("PATH", os.defpath)])
        if self.wheel is not None:
            libraries = [sysconfig.get_config_var("LIBDIR"), str(self.wheel.parents[1] / "nvidia_pytriton.libs")]
            inherited = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries + ([inherited] if inherited else []))
        return environment | openmp_environment(threads)


def find_installation() -> TritonInstallation:
    """The tritonserver to run: the wheel's, else the one on PATH or of NVIDIA's image. Raises TritonNotFoundError."""
    wheel = _wheel()
    if wheel is not None:
        return TritonInstallation(executable=wheel / "bin" / "tritonserver", wheel=wheel)
    installed = shutil.which("tritonserver")
    if installed is not None:
        return TritonInstallation(executable=Path(installed))
    if _IMAGE_EXECUTABLE.exists():
        return TritonInstallation(executable=_IMAGE_EXECUTABLE)
    raise TritonNotFoundError(
        "no tritonserver: `pip install --no-deps nvidia-pytriton==0.7.0` (Linux x86-64, glibc 2.35 or newer), install "
        "tritonserver, name one with --triton-address, or serve with --backend local"
    )


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.submodule_search_locations is None:
        return None
    for location in spec.submodule_search_locations:
        directory = Path(location) / "tritonserver"
        if (directory / "bin" / "tritonserver").exists():
            return directory
    return None


def _stub(wheel: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = wheel / "python_backend_stubs"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.exists():
        built_for = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise TritonNotFoundError(f"the nvidia-pytriton wheel has no stub for Python {version}, it has {built_for}")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise TritonNotFoundError(
            f"{sys.executable} is built without a shared libpython, which Triton's python stub links to: use another "
            "interpreter, or serve with --backend local"
        )
    return stub
