"""The built wheel serves a machine that has neither a compiler nor liburing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The first test that asks for a fixture waits for it: a wheel is built and its requirements are
# downloaded.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="the extension is for Linux"),
    pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="needs the stable ABI"
    ),
]

SEND = """
import hashlib
import os
import socket
import sys
import threading

import anyio

import zc_anyio

MIB = 1 << 20


async def main() -> None:
    data = os.urandom(MIB)
    received = hashlib.sha256()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    receiver.settimeout(60)

    def receive() -> None:
        while chunk := receiver.recv(65536):
            received.update(chunk)

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        async with zc_anyio.open_ring() as ring:
            async with zc_anyio.send_group() as group:
                await group.send(sender, data)
            assert ring.statistics() is not None
    finally:
        sender.close()
        thread.join()
        receiver.close()
    assert received.digest() == hashlib.sha256(data).digest()
    assert zc_anyio.__file__.startswith(sys.prefix), zc_anyio.__file__
    print("received what was sent")


anyio.run(main)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the wheel and what it requires, and nothing else."""

    python: Path
    extension: Path


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the settings that could show it the source tree."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "ZC_SANITIZE", "LD_PRELOAD"}
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, and return what it wrote."""
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def copy_source(target: Path) -> Path:
    """Copy what the build reads: it then starts from nothing, and leaves the source tree alone."""
    target.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("_native", "zc_anyio"):
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = copy_source(directory / "source")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    succeed(*pip, "wheel", "--no-deps", "-w", directory / "dist", source, cwd=directory)
    (built,) = (directory / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv" / "bin" / "python"
    succeed(python, "-m", "pip", "--disable-pip-version-check", "install", wheel, cwd=directory)
    locate = "import zc_anyio._native._zc as module; print(module.__file__)"
    extension = Path(succeed(python, "-c", locate, cwd=directory).strip())
    return Environment(python, extension)


def test_tags(wheel: Path) -> None:
    machine = re.escape(sysconfig.get_platform().replace("-", "_"))
    assert re.fullmatch(rf"zc_anyio-[^-]+-cp311-abi3-{machine}\.whl", wheel.name)


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "zc_anyio/__init__.py",
        "zc_anyio/_native/_zc.abi3.so",
        "zc_anyio/_native/_zc.pyi",
        "zc_anyio/py.typed",
    } <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"zc_anyio"}
    assert any(re.fullmatch(r".*\.dist-info/licenses/LICENSE", name) for name in names)


def test_liburing_is_linked_statically(environment: Environment) -> None:
    libraries = succeed("ldd", environment.extension, cwd=environment.extension.parent)
    assert "libc.so" in libraries
    assert "uring" not in libraries
    assert "not found" not in libraries


def test_old_libraries_of_c_are_enough(environment: Environment) -> None:
    # Of the symbols that it asks for, the newest decides which manylinux tag the wheel may have.
    named = re.findall(rb"GLIBC_(\d+)\.(\d+)", environment.extension.read_bytes())
    assert named
    assert max((int(major), int(minor)) for major, minor in named) <= (2, 17)


def test_send(environment: Environment, tmp_path: Path) -> None:
    script = tmp_path / "send.py"
    script.write_text(SEND, encoding="utf-8")
    output = succeed(environment.python, "-W", "error", script, cwd=tmp_path)
    assert output == "received what was sent\n"


@pytest.mark.parametrize(
    ("variable", "value", "package"),
    [
        ("PKG_CONFIG_LIBDIR", "empty", "liburing-dev"),
        ("PKG_CONFIG", "no-such-pkg-config", "pkg-config"),
        ("CC", "no-such-compiler", "gcc"),
    ],
    ids=["liburing", "pkg-config", "compiler"],
)
def test_build_names_what_is_missing(
    variable: str, value: str, package: str, tmp_path: Path
) -> None:
    source = copy_source(tmp_path / "source")
    (tmp_path / "empty").mkdir()
    if value == "empty":
        value = str(tmp_path / "empty")
    variables = {"PKG_CONFIG_PATH": "", variable: value}
    result = run(sys.executable, "setup.py", "--quiet", "build_ext", cwd=source, **variables)
    assert result.returncode != 0
    assert re.fullmatch(
        rf"zc_anyio cannot be built: .+ is missing; install it with: apt install {package}.*\n",
        result.stderr,
    )


def test_no_extension_elsewhere_than_on_linux(tmp_path: Path) -> None:
    source = copy_source(tmp_path / "source")
    script = (
        "import runpy, sys;"
        "build = runpy.run_path('_native/build.py');"
        "sys.platform = 'darwin';"
        "print(build['setup_arguments']())"
    )
    assert succeed(sys.executable, "-c", script, cwd=source) == "{}\n"
