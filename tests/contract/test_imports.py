"""The package: order of its modules, what importing it needs, its public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import zc_anyio

PACKAGE = Path(zc_anyio.__file__).parent
# Each imports only from those before it.
ORDER = [
    "_errors",
    "_events",
    "_lib",
    "_native_ring",
    "_capabilities",
    "_buffers",
    "_files",
    "_loops",
    "_reaper",
    "_descriptors",
    "_sockets",
    "_contexts",
    "_ring",
    "_opening",
    "_pools",
    "_queueing",
    "_senders",
    "_groups",
    "_brief_waits",
    "_halves",
    "_receiving",
    "_ring_receiving",
    "_outputs",
    "_takeover",
    "streams",
    "listeners",
    "datagrams",
    "_trio_stream",
    "_connect",
    "httpcore",
    "lowlevel",
    "_measure",
    "_report",
    "_display",
    "__main__",
]


def imported_here(tree: ast.AST) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            if node.module is None:
                found |= {alias.name for alias in node.names}
            else:
                found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zc_anyio"):
            found.add((node.module or "").removeprefix("zc_anyio.").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("zc_anyio.")}
    return found


def test_modules_import_only_what_stands_before_them() -> None:
    seen: set[str] = set()
    for name in ORDER:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        allowed = seen | ({"_zc"} if name == "_lib" else set())
        assert imported_here(tree) <= allowed, name
        seen.add(name)


def test_the_order_is_complete() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


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
    assert not {"trio", "uvloop", "numpy", "rich", "cffi", "httpcore"} & set(done.stdout.split())
