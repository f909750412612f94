"""The sdist is enough: with what it names, and offline, it gives the wheel of the source tree."""

from __future__ import annotations

import email
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_wheel import ROOT, copy_source, pytestmark, succeed

__all__ = ["pytestmark"]

BACKEND = (
    "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what the build names, and nothing else."""
    directory = tmp_path_factory.mktemp("builder")
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install")
    succeed(*pip, *PROJECT["build-system"]["requires"], cwd=directory)
    return python


@pytest.fixture(scope="module")
def sdist(builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    source = copy_source(directory / "source")
    succeed(builder, "-c", BACKEND, directory / "dist", cwd=source)
    (built,) = (directory / "dist").iterdir()
    return built


def wheel_of(source: Path, builder: Path, directory: Path) -> dict[str, int]:
    """Build a wheel offline; return the size of each file in it."""
    pip = (builder, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps")
    offline = ("--no-index", "--no-build-isolation", "-w", directory)
    succeed(*pip, *offline, source, cwd=directory.parent)
    (built,) = directory.iterdir()
    with zipfile.ZipFile(built) as archive:
        return {item.filename: item.file_size for item in archive.infolist()}


def test_the_sdist_gives_the_wheel_of_the_tree(sdist: Path, builder: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    from_sdist = wheel_of(unpacked, builder, tmp_path / "from-sdist")
    from_tree = wheel_of(copy_source(tmp_path / "tree"), builder, tmp_path / "from-tree")
    assert set(from_sdist) == set(from_tree)
    assert from_sdist["zc_anyio/_native/_zc.abi3.so"] > 100_000


def test_the_sdist_has_the_one_version(sdist: Path) -> None:
    version = PROJECT["project"]["version"]
    assert sdist.name == f"zc_anyio-{version}.tar.gz"
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(f"zc_anyio-{version}/PKG-INFO")
        assert member is not None
        told = email.message_from_bytes(member.read())
    assert told["Version"] == version
    written = [
        path.relative_to(ROOT)
        for folder in ("zc_anyio", "_native")
        for path in (ROOT / folder).rglob("*.[pch]*")
        if path.suffix in (".py", ".c", ".h") and version in path.read_text(encoding="utf-8")
    ]
    assert written == []


def test_the_changelog_has_the_version() -> None:
    version = PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{version}] - 20" in changelog
