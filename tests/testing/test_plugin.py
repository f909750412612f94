"""The pytest plugin, as a project uses it: a ring for each test; tests that leave things open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.backends import BACKENDS

CONFTEST = """
import pytest

pytest_plugins = ["zc_anyio.testing"]

@pytest.fixture(params={backends!r})
def anyio_backend(request):
    return request.param
"""

USES = """
import pytest

import zc_anyio
from zc_anyio.testing import silent_pair

async def sends(ring):
    assert zc_anyio.current_ring() is ring
    with silent_pair() as (client, peer):
        async with zc_anyio.send_group() as group:
            await group.send(client, b"hello")
        assert peer.recv(5) == b"hello"
    assert ring.statistics().sends == 1

@pytest.mark.anyio
async def test_anyio(ring):
    await sends(ring)

@pytest.mark.trio
async def test_trio(ring):
    await sends(ring)

class TestChosen:
    @pytest.fixture
    def ring_options(self):
        return {"driver": "copy"}

    @pytest.mark.anyio
    async def test_options(self, ring):
        assert ring.capabilities.driver == "copy"
"""

LEAVES = """
import os
from contextlib import ExitStack

import anyio
import pytest

import zc_anyio
from zc_anyio.testing import nothing_left, silent_pair

kept = ExitStack()

@pytest.mark.anyio
async def test_held(ring):
    client, _ = kept.enter_context(silent_pair())
    with anyio.move_on_after(0.1):
        async with zc_anyio.send_group() as group:
            await group.send(client, bytes(1 << 20))

def test_descriptor(nothing_left_open):
    os.pipe()

@pytest.mark.anyio
async def test_open_ring():
    opened = zc_anyio.open_ring(driver="copy")
    try:
        with nothing_left():
            await opened.__aenter__()
    finally:
        await opened.__aexit__(None, None, None)
"""


def run(folder: Path, tests: str, backends: list[object]) -> str:
    (folder / "conftest.py").write_text(CONFTEST.format(backends=backends))
    (folder / "test_project.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_project.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return done.stdout


def test_a_ring_for_each_test_of_anyio_and_trio(tmp_path: Path) -> None:
    backends = [backend.values[0] for backend in BACKENDS]
    assert "7 passed" in run(tmp_path, USES, backends)


def test_what_is_left_fails_the_test(tmp_path: Path) -> None:
    output = run(tmp_path, LEAVES, ["asyncio"])
    assert "1 failed, 2 passed, 2 errors" in output, output
    assert "ERROR test_project.py::test_held[asyncio] - AssertionError: RingStatistics" in output
    assert "left open: {" in output
    assert "left open: <Ring copy>" in output
