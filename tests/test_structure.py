"""The house keeps its shape: who may import whom, nothing executable, names, docstrings, a test tree beside the source.

Everything is read statically, so a rule holds for code that no test runs. Each check takes any tree of files, and is
shown below to fail on a small bad one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Where packages are found, as an editable install puts them on sys.path, and which of them are ours.
SOURCE_ROOTS = {".": ("policy", "service", "training"), "protos": ("premotor",), "clients/python": ("premotor",)}
SCRIPTS = ("scripts", "examples", "protos")
NAMESPACE = ("protos/premotor", "clients/python/premotor")
GENERATED = ("_pb2.py", "_pb2_grpc.py")

# Whose first-party modules a module may import, by the longest prefix that fits its own name.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "premotor.v1": ("premotor.v1",),
    "premotor.wire": ("premotor.v1", "premotor.wire"),
    "premotor.client": ("premotor.v1", "premotor.wire", "premotor.client"),
    "policy": ("policy",),
    "training": ("training", "policy", "premotor.client"),
    "service": ("service", "policy", "premotor.v1", "premotor.wire"),
    "scripts": ("training", "premotor.client"),
    "examples": ("premotor.client",),
    "protos": (),
}
FIRST_PARTY = ("premotor", "policy", "training", "service", "scripts", "examples", "protos")
CLIENT_NEEDS = ("numpy", "grpc", "google.protobuf", "premotor")
# Optional: imported where they are used, never when the client is.
CLIENT_CODECS = ("simplejpeg", "PIL", "rerun", "websockets", "msgpack", "lerobot")
# Runs in LeRobot's own environment, never in a robot's.
LEROBOT_DRIVER = "premotor.client.fleet.lerobot_driver"
# The only modules of the service that run a model, and those that reach for one when their verb is called.
RUNS_THE_MODEL = (
    "service.bench.untrained",
    "service.chaos.checkpoints",
    "service.chaos.twins",
    "service.inference",
    "service.local",
    "service.triton.adapter",
)
REACHES_FOR_THE_MODEL = (
    "service.__main__",
    "service.bench.overhead",
    "service.bench.peers.lerobot_server",
    "service.bench.peers.served_model",
    "service.bench.request_parts",
    "service.chaos.kill",
    "service.chaos.load",
    "service.chaos.twin_service",
)
MODEL_CODE = ("torch", "policy", "transformers", "safetensors", "tokenizers", "training")
WITHOUT_MODEL_CODE = ("service.gateway", "service.admin", "service.openpi", "service.credentials", "service.processes")
# Paper B's model stands on paper A's, never the other way; a config alone decides which is built.
PAPER_B = ("policy.intent", "policy.intent_vla", "policy.visual_features")
CHOOSES_THE_MODEL = "policy.models"
# Deserialisers that run what they read. Jobs between our own processes are multiprocessing's business, not a file's.
EXECUTABLE_FORMATS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
EXECUTING = {"eval", "exec", "torch.load", "torch.hub.load", "os.system", "yaml.load"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported name. `lazy` is inside a function; what only a type checker sees is no import."""

    name: str
    lazy: bool


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    source: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(_imports(self.tree, self.name if self.is_package else self.name.rpartition(".")[0]))


@dataclass(frozen=True)
class House:
    """All modules of a tree, by name."""

    root: Path
    modules: dict[str, Module]

    @classmethod
    def read(cls, root: Path) -> House:
        modules = {}
        for source_root, packages in SOURCE_ROOTS.items():
            for package in packages:
                for path in sorted((root / source_root / package).rglob("*.py")):
                    modules |= _module(path, root / source_root)
        for directory in SCRIPTS:
            for path in sorted((root / directory).glob("*.py")):
                modules |= _module(path, root)
        return cls(root, modules)

    def under(self, *prefixes: str) -> Iterator[Module]:
        for name, module in self.modules.items():
            if any(_is_under(name, prefix) for prefix in prefixes):
                yield module

    def reaches(self, start: Iterable[str], *, lazily: bool) -> dict[str, str]:
        """Everything that importing `start` imports, first-party modules followed, with one importer of each."""
        found: dict[str, str] = {}
        pending = [name for name in start if name in self.modules]
        while pending:
            importer = self.modules[pending.pop()]
            for name in _loaded(importer, lazily=lazily):
                if name not in found:
                    found[name] = importer.name
                    if name in self.modules:
                        pending.append(name)
        return found


def _module(path: Path, source_root: Path) -> dict[str, Module]:
    parts = path.relative_to(source_root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return {name: Module(name, path, path.read_text(), is_package)}


def _imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Absolute names; `from a import b` is both `a` and `a.b`, which may be a module."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            yield Import(base, lazy)
            yield from (Import(f"{base}.{alias.name}", lazy) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            named = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(name, lazy) for name in named if isinstance(name, str))
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in children:
            yield from walk(child, lazy)

    return walk(tree, lazy=False)


def _loaded(module: Module, *, lazily: bool) -> Iterator[str]:
    """What importing a module imports, parent packages included."""
    for imported in module.imports:
        if lazily or not imported.lazy:
            parts = imported.name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _is_under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _is_generated(path: Path) -> bool:
    return path.name.endswith(GENERATED)


def wrong_imports(house: House) -> list[str]:
    """Imports across the house that its plan does not have."""
    faults = []
    for module in house.modules.values():
        fitting = [prefix for prefix in MAY_IMPORT if _is_under(module.name, prefix)]
        allowed = MAY_IMPORT[max(fitting, key=len)]
        for imported in module.imports:
            # `from premotor import client` names the namespace too, which holds nothing.
            ours = any(_is_under(imported.name, package) for package in FIRST_PARTY) and imported.name != "premotor"
            if ours and not any(_is_under(imported.name, prefix) for prefix in allowed):
                faults.append(f"{module.name} imports {imported.name}")
    return faults


def foreign_client_imports(house: House) -> list[str]:
    """What a robot would have to install beyond grpcio, protobuf and numpy."""
    faults = []
    for module in house.under("premotor"):
        for imported in module.imports:
            if imported.name.partition(".")[0] in sys.stdlib_module_names or imported.name == "google":
                continue
            if any(_is_under(imported.name, needed) for needed in CLIENT_NEEDS):
                continue
            codec = any(_is_under(imported.name, codec) for codec in CLIENT_CODECS)
            codec = codec or (module.name == LEROBOT_DRIVER and _is_under(imported.name, "torch"))
            if not (codec and imported.lazy):
                faults.append(f"{module.name} imports {imported.name}{'' if imported.lazy else ' when it is imported'}")
    return faults


def model_imports_in_the_service(house: House) -> list[str]:
    """Modules of the service that import torch or the policy and are not the few that may."""
    faults = []
    for module in house.under("service"):
        for imported in module.imports:
            if any(_is_under(imported.name, code) for code in MODEL_CODE) and not (
                module.name in RUNS_THE_MODEL or (imported.lazy and module.name in REACHES_FOR_THE_MODEL)
            ):
                faults.append(f"{module.name} imports {imported.name}")
    return faults


def model_code_reached(house: House, *packages: str, lazily: bool = True) -> list[str]:
    """Model code that importing the packages brings along, by way of other modules of the service as well."""
    found = house.reaches([module.name for module in house.under(*packages)], lazily=lazily)
    return [
        f"{importer} imports {name}"
        for name, importer in found.items()
        if any(_is_under(name, code) for code in MODEL_CODE)
    ]


def paper_b_under_paper_a(house: House) -> list[str]:
    """Modules of the policy that need paper B's and are not it; the one that chooses does so when it is asked."""
    faults = []
    for module in house.under("policy"):
        chooses = module.name == CHOOSES_THE_MODEL
        faults += [
            f"{module.name} imports {imported.name}"
            for imported in module.imports
            if imported.name in PAPER_B and module.name not in PAPER_B and not (chooses and imported.lazy)
        ]
    return faults


def executable_input(house: House) -> list[str]:
    """Ways by which what is read from the wire or a disk would be run."""
    faults = []
    for module in house.modules.values():
        imported = {imported.name for imported in module.imports}
        formats = {name.partition(".")[0] for name in imported} & EXECUTABLE_FORMATS
        faults += [f"{module.path.name} imports {name}" for name in sorted(formats | imported & EXECUTING)]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                faults += [f"{module.path.name}:{node.lineno} {fault}" for fault in _executing_call(node)]
    return faults


def _executing_call(call: ast.Call) -> Iterator[str]:
    function = ast.unparse(call.func)
    if function in EXECUTING:
        yield function
    for keyword in call.keywords:
        harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and not harmless:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def vague_names(house: House) -> list[str]:
    return [name for name in house.modules if {part.strip("_") for part in name.split(".")[1:]} & VAGUE_NAMES]


def missing_docstrings(house: House) -> list[str]:
    """Modules that do not say what they own. An empty __init__.py owns nothing."""
    return [
        name
        for name, module in house.modules.items()
        if module.source.strip() and not _is_generated(module.path) and not ast.get_docstring(module.tree)
    ]


def split_namespace(root: Path) -> list[str]:
    """Files that would end the namespace package: the half with one hides the other."""
    return [f"{directory}/__init__.py" for directory in NAMESPACE if (root / directory / "__init__.py").exists()]


def stale_test_folders(root: Path) -> list[str]:
    """Folders of tests beside which there is no such folder of source."""
    sources = [root, *(root / source_root / "premotor" for source_root in SOURCE_ROOTS)]
    folders = {path.parent.relative_to(root / "tests") for path in (root / "tests").rglob("*.py")} - {Path()}
    return sorted(
        f"tests/{folder}"
        for folder in folders
        if folder.parts[0] != "e2e" and not any((source / folder).is_dir() for source in sources)
    )


def faults_of_tests(root: Path) -> list[str]:
    """Test files that share a name, packages among them, mocks."""
    paths = sorted((root / "tests").rglob("*.py"))
    names = Counter(path.name for path in paths if path.name != "conftest.py")
    faults = [f"{name} is the name of {count} files" for name, count in names.items() if count > 1]
    for path in paths:
        if path.name == "__init__.py":
            faults.append(f"{path.relative_to(root)} makes a package of tests")
        modules = {imported.name for imported in _imports(ast.parse(path.read_text()), "")}
        if any(_is_under(name, "unittest.mock") or name == "mock" for name in modules):
            faults.append(f"{path.relative_to(root)} imports a mock")
    return faults


@pytest.fixture(scope="module")
def house() -> House:
    return House.read(ROOT)


def test_the_whole_house_is_read(house: House) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    read = {module.path for module in house.modules.values()}
    present = {ROOT / line for line in tracked.stdout.splitlines() if (ROOT / line).exists()}
    assert {path for path in present - read if path.relative_to(ROOT).parts[0] != "tests"} == set()


def test_each_part_imports_only_what_lies_below_it(house: House) -> None:
    assert wrong_imports(house) == []


def test_a_robot_installs_grpcio_protobuf_and_numpy(house: House) -> None:
    assert foreign_client_imports(house) == []


def test_what_a_robot_installs_is_python_3_10(house: House) -> None:
    for module in house.under("premotor"):
        ast.parse(module.source, str(module.path), feature_version=(3, 10))


def test_only_the_backends_of_the_service_run_a_model(house: House) -> None:
    assert model_imports_in_the_service(house) == []
    assert set(RUNS_THE_MODEL) <= house.modules.keys()
    assert set(REACHES_FOR_THE_MODEL) <= house.modules.keys()


def test_gateway_and_admin_reach_no_model_code_by_any_way(house: House) -> None:
    assert model_code_reached(house, *WITHOUT_MODEL_CODE) == []


def test_serving_starts_without_model_code(house: House) -> None:
    assert model_code_reached(house, "service.serve", "service.__main__", lazily=False) == []


def test_paper_a_needs_nothing_of_paper_b(house: House) -> None:
    assert paper_b_under_paper_a(house) == []
    assert {*PAPER_B, CHOOSES_THE_MODEL} <= house.modules.keys()


def test_nothing_that_is_read_is_run(house: House) -> None:
    assert executable_input(house) == []


def test_no_module_is_named_for_nothing(house: House) -> None:
    assert vague_names(house) == []


def test_every_module_says_what_it_owns(house: House) -> None:
    assert missing_docstrings(house) == []


def test_premotor_stays_one_namespace_of_two_folders() -> None:
    assert split_namespace(ROOT) == []


def test_the_test_tree_mirrors_the_source() -> None:
    assert stale_test_folders(ROOT) == []


def test_test_files_have_names_of_their_own_and_no_mocks() -> None:
    assert faults_of_tests(ROOT) == []


Build = Callable[[dict[str, str]], Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def write(files: dict[str, str]) -> Path:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("policy/prior.py", "from policy.intent import IntentHead"),
        ("policy/vla.py", "def f():\n    from policy import intent_vla"),
        ("policy/models.py", "from policy.intent_vla import IntentVLA"),
    ],
)
def test_paper_b_under_paper_a_is_found(build: Build, path: str, source: str) -> None:
    assert len(paper_b_under_paper_a(House.read(build({path: source})))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protos/premotor/v1/x.py", "from premotor.wire import encode_tensor"),
        ("protos/premotor/wire/x.py", "import premotor.client"),
        ("protos/premotor/wire/x.py", "from premotor import client"),
        ("protos/premotor/wire/x.py", "from .. import client"),
        ("clients/python/premotor/client/x.py", "import policy"),
        ("policy/x.py", "from service.backend import Backend"),
        ("policy/x.py", "from premotor.v1 import policy_pb2"),
        ("policy/x.py", "def f():\n    import training.loop"),
        ("training/x.py", "import importlib\nimportlib.import_module('service.revision')"),
        ("training/x.py", "from premotor.v1 import policy_pb2"),
        ("service/x.py", "from training import loop"),
        ("service/x.py", "import premotor.client"),
        ("scripts/x.py", "import service.serve"),
        ("examples/x.py", "import training"),
        ("protos/x.py", "import policy"),
    ],
)
def test_an_import_against_the_plan_is_found(build: Build, path: str, source: str) -> None:
    assert len(wrong_imports(House.read(build({path: source})))) >= 1


def test_imports_that_are_planned_or_none_at_all_are_not_faults(build: Build) -> None:
    house = House.read(
        build(
            {
                "protos/premotor/wire/x.py": "from premotor.v1 import policy_pb2\nimport numpy",
                "training/x.py": "from policy.flow import integrate\nfrom premotor.client import PolicyClient",
                "service/x.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import training",
                "policy/x.py": "from policy import y\nfrom . import y",
            }
        )
    )
    assert wrong_imports(house) == []


@pytest.mark.parametrize(
    "source",
    ["import torch", "import google.auth", "import PIL", "from PIL import Image", "def f():\n    import scipy"],
)
def test_a_dependency_that_robots_lack_is_found(build: Build, source: str) -> None:
    house = House.read(build({"clients/python/premotor/client/x.py": source}))
    assert len(foreign_client_imports(house)) >= 1


def test_a_codec_inside_a_function_is_optional(build: Build) -> None:
    lazy = "import numpy, grpc, json\nfrom google.protobuf import message\ndef f():\n    from PIL import Image"
    assert foreign_client_imports(House.read(build({"clients/python/premotor/client/x.py": lazy}))) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("service/readiness.py", "import torch"),
        ("service/serve.py", "from policy.policy import Policy"),
        ("service/triton/client.py", "def f():\n    import policy"),
    ],
)
def test_model_code_outside_the_backends_is_found(build: Build, path: str, source: str) -> None:
    assert len(model_imports_in_the_service(House.read(build({path: source})))) >= 1


def test_the_backends_may_import_the_policy(build: Build) -> None:
    files = {"service/local.py": "import torch", "service/__main__.py": "def f():\n    import policy"}
    assert model_imports_in_the_service(House.read(build(files))) == []


def test_model_code_two_imports_away_from_the_gateway_is_found(build: Build) -> None:
    files = {
        "service/gateway/answers.py": "from service import errors",
        "service/errors.py": "def f():\n    from service.local import LocalBackend",
        "service/local.py": "import torch",
    }
    house = House.read(build(files))
    assert model_code_reached(house, "service.gateway") == ["service.local imports torch"]
    assert model_code_reached(house, "service.gateway", lazily=False) == []


def test_model_code_in_a_parent_package_is_found(build: Build) -> None:
    files = {"service/gateway/x.py": "import service.triton.client", "service/triton/__init__.py": "import policy"}
    assert model_code_reached(House.read(build(files)), "service.gateway") == ["service.triton imports policy"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "x = eval('1')",
        "def f():\n    exec('1')",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "load('x', trust_remote_code=flag)",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_a_way_to_run_what_is_read_is_found(build: Build, source: str) -> None:
    assert len(executable_input(House.read(build({"training/x.py": source})))) == 1


def test_words_that_only_look_executable_are_not_found(build: Build) -> None:
    source = "model.eval()\nnp.load('x', allow_pickle=False)\nload('x', trust_remote_code=False)\nsafetensors.load('x')"
    assert executable_input(House.read(build({"training/x.py": source}))) == []


@pytest.mark.parametrize(
    "path", ["policy/utils.py", "service/common/x.py", "training/data/base.py", "policy/_helpers.py"]
)
def test_a_module_named_for_nothing_is_found(build: Build, path: str) -> None:
    assert len(vague_names(House.read(build({path: '"""Things."""'})))) == 1


def test_a_module_without_a_docstring_is_found(build: Build) -> None:
    files = {
        "policy/x.py": "import torch",
        "policy/__init__.py": "",
        "policy/y.py": '"""Owns y."""',
        "protos/premotor/v1/policy_pb2.py": "x = 1",
    }
    assert missing_docstrings(House.read(build(files))) == ["policy.x"]


def test_a_package_file_in_the_namespace_is_found(build: Build) -> None:
    assert split_namespace(build({"protos/premotor/__init__.py": ""})) == ["protos/premotor/__init__.py"]


def test_a_folder_of_tests_without_source_is_found(build: Build) -> None:
    root = build({"tests/gone/test_x.py": "", "tests/policy/test_y.py": "", "policy/y.py": "", "tests/test_z.py": ""})
    assert stale_test_folders(root) == ["tests/gone"]


def test_doubled_names_packages_and_mocks_among_tests_are_found(build: Build) -> None:
    files = {
        "tests/policy/test_x.py": "",
        "tests/service/test_x.py": "from unittest.mock import patch",
        "tests/service/__init__.py": "",
        "tests/conftest.py": "",
        "tests/service/conftest.py": "",
    }
    assert sorted(faults_of_tests(build(files))) == [
        "test_x.py is the name of 2 files",
        "tests/service/__init__.py makes a package of tests",
        "tests/service/test_x.py imports a mock",
    ]
