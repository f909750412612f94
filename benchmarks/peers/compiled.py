"""Loops in C that are called once for all sends: this builds them."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["send_loop"]

FOLDER = Path(__file__).resolve().parents[2] / "build" / "benchmarks"


@functools.cache
def send_loop(source: str, function: str) -> Any:
    """Return a function of a source file beside this one, built if it has changed.

    It takes a descriptor, data, its size, and how often to send it; it returns 0 or a negative
    errno.
    """
    path = Path(__file__).with_name(source)
    library = FOLDER / path.with_suffix(".so").name
    if not library.exists() or library.stat().st_mtime < path.stat().st_mtime:
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *options, str(path), "-o", str(unfinished)], check=True)
        unfinished.replace(library)
    found = getattr(ctypes.CDLL(str(library)), function)
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long]
    found.restype = ctypes.c_long
    return found
