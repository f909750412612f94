"""Adds the native extension to what pyproject.toml says; see _native/build.py."""

import importlib.util
from pathlib import Path

from setuptools import setup

spec = importlib.util.spec_from_file_location(
    "zc_native_build", Path(__file__).resolve().parent / "_native" / "build.py"
)
assert spec is not None
assert spec.loader is not None
native_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native_build)

setup(**native_build.setup_arguments())
