"""The reference has every public name, each parameter, and what cancellation leaves behind."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

import pytest

from tests.support.commands import ROOT

REFERENCE = ROOT / "docs" / "reference"
# The classes of these are in zc_anyio as well, and documented there.
FACES = ["zc_anyio.streams", "zc_anyio.listeners", "zc_anyio.datagrams"]
DIRECTIVE = re.compile(
    r"^\.\. (?:auto(?:function|class|exception)|py:data):: ([\w.]+)(?:.*\n   :members:(.*))?",
    re.MULTILINE,
)


def documented() -> Iterator[tuple[str, object]]:
    """Yield each name in the reference and its object; for a class its members as well."""
    for page in sorted(REFERENCE.glob("*.md")):
        for name, members in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            module, _, last = name.rpartition(".")
            found = getattr(importlib.import_module(module), last)
            yield name, found
            for member in filter(None, map(str.strip, members.split(","))):
                yield f"{name}.{member}", inspect.getattr_static(found, member)
            if inspect.isclass(found) and found.__module__.startswith("zc_anyio") and not members:
                for member, made in vars(found).items():
                    if inspect.isfunction(made) and not member.startswith("_"):
                        yield f"{name}.{member}", made


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("page", sorted(page.stem for page in REFERENCE.glob("*.md")))
def test_the_reference_has_every_public_name(page: str) -> None:
    module = "zc_anyio" if page == "zc_anyio" else f"zc_anyio.{page}"
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    own = {name for name in DOCUMENTED if name.rpartition(".")[0] == module}
    assert own == names


def test_every_public_module_has_a_page_or_is_a_face() -> None:
    modules = {
        f"zc_anyio.{path.stem}" if path.stem != "__init__" else f"zc_anyio.{path.parent.name}"
        for pattern in ("*.py", "*/__init__.py")
        for path in (ROOT / "zc_anyio").glob(pattern)
        if not path.parent.name.startswith("_") and not path.stem.startswith("__main")
    }
    public = {name for name in modules if not re.search(r"\._|zc_anyio\.zc_anyio", name)}
    pages = {f"zc_anyio.{page.stem}" for page in REFERENCE.glob("*.md")} - {"zc_anyio.zc_anyio"}
    assert public == pages | set(FACES)
    for face in FACES:
        for name in importlib.import_module(face).__all__:
            assert f"zc_anyio.{name}" in DOCUMENTED


@pytest.mark.parametrize("name", DOCUMENTED)
def test_each_parameter_is_explained(name: str) -> None:
    made = DOCUMENTED[name]
    made = getattr(made, "__func__", made)
    if not inspect.isfunction(made) or "fixture" in repr(made):
        return
    said = set(re.findall(r":param (\w+):", inspect.getdoc(made) or ""))
    taken = set(inspect.signature(made).parameters) - {"self", "cls"}
    assert said == taken


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_reference_says_what_cancellation_leaves(name: str) -> None:
    made = getattr(DOCUMENTED[name], "__func__", DOCUMENTED[name])
    inner = inspect.unwrap(made) if callable(made) else made
    waits = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
    # A fixture is not called by programs, and this one is httpcore's own.
    if waits and "fixture" not in repr(made) and not name.endswith("RingBackend.sleep"):
        assert "ancel" in (inspect.getdoc(made) or "")
