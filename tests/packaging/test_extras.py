"""Each extra brings what its part imports: it works in an environment that has nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.test_wheel import ROOT, pytestmark, succeed, wheel
from tests.support.waiting import LIMIT

__all__ = ["pytestmark", "wheel"]

# Those are for working on the project: they contain what users install, and more.
OWN = {"examples", "quic", "test", "test-anyio", "lint", "bench", "docs", "mutants", "dist"}
EXTRAS = sorted(
    set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    - OWN
)

SEND = """
import sys

import anyio

import zc_anyio


async def main():
    async with zc_anyio.open_ring():
        made = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        port = made.extra(anyio.abc.SocketAttribute.local_port)
        async with made, await zc_anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"hello")


backend, options = {
    "trio": ("trio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}.get(sys.argv[1], ("asyncio", {}))
anyio.run(main, backend=backend, backend_options=options)
"""

APPLICATION = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})
"""


def run_send(python: Path, extra: str, folder: Path) -> None:
    (folder / "send.py").write_text(SEND)
    succeed(python, "-W", "error", "send.py", extra, cwd=folder)


def run_report(python: Path, extra: str, folder: Path) -> None:
    assert "io_uring" in succeed(python, "-W", "error", "-m", "zc_anyio", cwd=folder)


def run_import(python: Path, extra: str, folder: Path) -> None:
    succeed(python, "-W", "error", "-c", f"import zc_anyio.{extra}", cwd=folder)


def run_server(python: Path, extra: str, folder: Path) -> None:
    (folder / "served.py").write_text(APPLICATION)
    command = [python, "-W", "error", "-m", "zc_anyio.asgi", "served:app", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            lines: list[str] = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"http://[0-9.:]+", line):
                    with urllib.request.urlopen(found[0], timeout=LIMIT) as answer:
                        assert answer.read() == b"served"
                    return
            pytest.fail("".join(lines))
        finally:
            server.terminate()


JOBS: dict[str, Callable[[Path, str, Path], None]] = {
    "": run_send,
    "asgi": run_server,
    "cli": run_report,
    "httpcore": run_import,
    "metrics": run_import,
    "trio": run_send,
    "uvloop": run_send,
}


def test_each_extra_is_tried() -> None:
    assert sorted(JOBS) == ["", *EXTRAS]


@pytest.mark.parametrize("extra", JOBS, ids=[extra or "none" for extra in JOBS])
def test_an_extra_is_enough(wheel: Path, extra: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    succeed(*pip, "install", "--quiet", what, cwd=tmp_path)
    JOBS[extra](python, extra, tmp_path)
