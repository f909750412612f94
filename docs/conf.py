"""How Sphinx builds the site (`make docs`)."""

from __future__ import annotations

import builtins
import importlib
import re
import sys
import urllib.request
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

project = "zc_anyio"
author = "the zc_anyio authors"
copyright = author  # noqa: A001 - the name that Sphinx asks for
version = release = installed_version("zc_anyio")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["performance/results"]
html_theme = "furo"
html_title = f"zc_anyio {version}"
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False

# Pages link to each other's headings as on a forge: `page.md#a-heading`.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
nitpicky = True

# Where names of other projects are documented.  Inventories that were fetched once are used again;
# names of one that cannot be fetched are not links.
INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "anyio": "https://anyio.readthedocs.io/en/stable/",
    "trio": "https://trio.readthedocs.io/en/stable/",
}
FETCHED = Path(__file__).resolve().parents[1] / "build" / "inventories"
FETCH_SECONDS = 5.0


def _fetch(name: str, site: str) -> Path | None:
    """Return the inventory of a site, or ``None`` if it cannot be had."""
    file = FETCHED / f"{name}.inv"
    if not file.exists():
        try:
            with urllib.request.urlopen(f"{site}objects.inv", timeout=FETCH_SECONDS) as answer:
                content = answer.read()
        except OSError as exc:
            print(f"the names of {name} are no links: {site} cannot be reached: {exc}")
            return None
        FETCHED.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return file


_found = {name: _fetch(name, site) for name, site in INVENTORIES.items()}
intersphinx_mapping = {
    name: (INVENTORIES[name], str(file)) for name, file in _found.items() if file is not None
}
# Errors must not depend on the network, so names of other projects never are errors.
_others = {"anyio", "httpcore", "httpx", "prometheus_client", "starlette", "trio"}
_others |= sys.stdlib_module_names | set(dir(builtins))
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(map(re.escape, sorted(_others)))})(\..*)?"),
    # A protocol for type checkers: an object with a `fileno` method.
    (r"py:class", r"zc_anyio\._sending\.files\.HasDescriptor"),
    # Of fields of a dataclass, whose annotations are not resolved: anyio's, and an alias.
    (r"py:class", r"Listener|Kernel"),
]

PUBLIC = (
    "zc_anyio",
    *(f"zc_anyio.{name}" for name in ("asgi", "httpcore", "lowlevel", "metrics", "testing", "tls")),
)


def _public_names() -> dict[str, str]:
    """Return under which public name each object is documented, by its own and its last name."""
    names: dict[str, str] = {}
    for module in reversed(PUBLIC):
        for name in importlib.import_module(module).__all__:
            own = getattr(importlib.import_module(module), name)
            names[name] = f"{module}.{name}"
            names[f"{getattr(own, '__module__', module)}.{name}"] = f"{module}.{name}"
    return names


def _resolve_private(app: Sphinx, env: Any, node: Any, content: Node) -> Node | None:
    """Lead a reference to where an object is defined to where it is documented."""
    if node.get("refdomain") != "py":
        return None
    names = _public_names()
    wanted, member = node["reftarget"], ""
    if wanted not in names:
        wanted, _, member = wanted.rpartition(".")
    if wanted not in names:
        return None
    target = ".".join(filter(None, (names[wanted], member)))
    domain = env.get_domain("py")
    found: Node | None = domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", target, node, content
    )
    return found


def _show_scopes(
    _app: Sphinx, _what: str, _name: str, made: Any, _options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Say of a context manager what it gives, and not by which generator it is written."""
    code = getattr(made, "__code__", None)
    if code is None or not code.co_qualname.endswith("contextmanager.<locals>.helper"):
        return None
    kind = (
        "AbstractAsyncContextManager" if "async" in code.co_qualname else "AbstractContextManager"
    )
    given = re.sub(r"^\w+\[(.*?)(, None)*\]$", r"\1", returned)
    return signature, f"~contextlib.{kind}[{given}]"


def setup(app: Sphinx) -> None:
    """Add what the above needs to Sphinx."""
    app.connect("missing-reference", _resolve_private)
    app.connect("autodoc-process-signature", _show_scopes)
