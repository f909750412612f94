"""The C files stand in layers: none calls one that, by whatever way, calls it."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "_native"
DEFINED = re.compile(r"^(?!static|typedef)[a-z][\w *]*?\b(zc_\w+)\([^;]*?\)\n\{", re.MULTILINE)


@pytest.mark.skipif(not NATIVE.is_dir(), reason="the sources are not here")
def test_no_files_call_each_other_in_a_circle() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in NATIVE.rglob("*.c")}
    where = {name: file for file, text in sources.items() for name in DEFINED.findall(text)}
    assert len(where) > 100
    calls: dict[str, set[str]] = {}
    for file, text in sources.items():
        used = {where[name] for name in re.findall(r"\b(zc_\w+)\(", text) if name in where}
        calls[file] = used - {file}
    # A driver is called through a table.
    TopologicalSorter(calls).prepare()
