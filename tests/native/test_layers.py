"""The C files stand in layers, in the order in which the two headers name them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "_native"
DEFINED = re.compile(r"^(?!static|typedef)[a-z][\w *]*?\b(zc_\w+)\([^;]*?\)\n\{", re.MULTILINE)
HEADERS = ("accounting/accounting.h", "ring/ring.h")
# Of these none makes a system call: memory, strings, and types.
WITHOUT_SYSTEM_CALLS = {
    "accounting.h", "errno.h", "limits.h", "pthread.h", "stdatomic.h", "stdbool.h", "stddef.h",
    "stdint.h", "stdlib.h", "string.h", "sys/socket.h", "sys/uio.h", "../zc.h",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not NATIVE.is_dir(), reason="the sources are not here")


def layers() -> list[Path]:
    return [
        NATIVE / Path(header).parent / name
        for header in HEADERS
        for name in re.findall(r"^/\* (\w+\.c) \*/$", (NATIVE / header).read_text(), re.MULTILINE)
    ]


def test_every_file_has_its_layer() -> None:
    assert sorted(layers()) == sorted(NATIVE.rglob("*.c"))


def test_no_file_calls_one_above_it() -> None:
    texts = [path.read_text() for path in layers()]
    layer_of = {name: layer for layer, text in enumerate(texts) for name in DEFINED.findall(text)}
    assert len(layer_of) > 100
    names = [path.name for path in layers()]
    upwards = [
        f"{names[layer]} calls {name} of {names[layer_of[name]]}"
        for layer, text in enumerate(texts)
        for name in sorted(set(re.findall(r"\b(zc_\w+)\(", text)))
        if layer_of.get(name, layer) > layer
    ]
    assert not upwards


def test_the_accounting_includes_nothing_that_makes_a_system_call() -> None:
    folder = NATIVE / "accounting"
    for path in [*folder.glob("*.c"), *folder.glob("*.h")]:
        included = set(re.findall(r'^#include ["<](.*)[">]$', path.read_text(), re.MULTILINE))
        assert included <= WITHOUT_SYSTEM_CALLS, path.name
