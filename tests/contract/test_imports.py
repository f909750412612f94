"""The package: order of its rooms, what importing it needs, its public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import zc_anyio
from tests.support.commands import ROOT

PACKAGE = Path(zc_anyio.__file__).parent
# From the bottom to the top: rooms, and modules outside of rooms.  Each imports only from those on
# lower floors.
FLOORS = [
    {"_base"},
    {"_native"},
    {"_files"},
    {"_ring"},
    {"_sending"},
    {"_receiving", "_doctor", "lowlevel", "metrics", "testing"},
    {"_outputs"},
    {"streams", "datagrams"},
    {"_seqpacket"},
    {"listeners"},
    {"_tls"},
    {"tls"},
    {"_connecting"},
    {"httpcore", "asgi"},
    {"__main__"},
]


def room_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def imports() -> dict[str, set[str]]:
    """Return what each module of the package imports from it, anywhere in it."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    modules = set(names.values())

    def module_named(name: str) -> str:
        # What is imported from a module may be a module itself, or a name in it.
        return name if name in modules or name == "_native._zc" else name.rpartition(".")[0]

    found: dict[str, set[str]] = {}
    for path, name in names.items():
        here = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                parts = ["zc_anyio", *name.split(".")][: -node.level] if node.level else []
                base = ".".join([*parts, *(node.module or "").split(".")]).rstrip(".")
                targets = [f"{base}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            here |= {
                module_named(target.removeprefix("zc_anyio."))
                for target in targets
                if target.startswith("zc_anyio.")
            }
    return found


def test_rooms_import_only_from_lower_floors() -> None:
    below: set[str] = set()
    floors: dict[str, set[str]] = {}
    for floor in FLOORS:
        floors |= {room: below | {room} for room in floor}
        below |= floor
    for module, imported in imports().items():
        rooms = {room_of(name) for name in imported}
        assert rooms <= floors[room_of(module)], module


def test_every_module_has_a_floor() -> None:
    assert {room_of(module) for module in imports()} == set().union(*FLOORS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(imports()).prepare()


def test_only_one_module_imports_the_extension() -> None:
    assert {module for module, names in imports().items() if "_native._zc" in names} == {
        "_native.lib"
    }


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.glob("_[a-z]*/")))
def test_a_room_says_what_it_is_for_and_exports_nothing(room: str) -> None:
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1
    assert len(list((PACKAGE / room).glob("*.py"))) <= 9  # eight modules and this one


@pytest.mark.parametrize(
    "folder", ["zc_anyio", "_native", "examples", "benchmarks", "tests", "scripts"]
)
def test_a_module_has_400_lines_at_most(folder: str) -> None:
    sources = [
        path
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".pyi", ".c", ".h", ".js", ".css"} and path.is_file()
    ]
    long = {
        str(path): lines for path in sources if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_public_names() -> None:
    for name in zc_anyio.__all__:
        assert hasattr(zc_anyio, name), name
    # Whether zc_anyio.lowlevel is among them depends on who has imported it.
    public = {
        name
        for name, value in vars(zc_anyio).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(zc_anyio.__all__)


def test_importing_does_not_import_optional_packages() -> None:
    script = "import sys, zc_anyio; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {
        "trio",
        "uvloop",
        "numpy",
        "rich",
        "cffi",
        "httpcore",
        "httptools",
        "prometheus_client",
    } & set(done.stdout.split())
