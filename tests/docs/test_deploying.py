"""The application and the proxy of the page about deploying, as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.streams.web_servers import running
from tests.support.commands import ROOT
from tests.support.peers import listener
from tests.support.waiting import LIMIT, until_blocking

PAGE = (ROOT / "docs/howto/deploying.md").read_text(encoding="utf-8")
BACKENDS = ["asyncio", "uvloop", "trio"]

pytestmark = pytest.mark.timeout(90)


def block(name: str) -> str:
    """Return the block of the page that has this comment before it."""
    found = re.findall(rf"^<!-- {name} -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What /srv/web holds."""
    (tmp_path / "main.py").write_text(block("main.py"))
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "page.txt").write_text("a page")
    return tmp_path


@contextmanager
def served(folder: Path, number: int, *options: str) -> Iterator[Path]:
    """Run an instance with the options of the unit, at a socket of its own."""
    path = folder / f"socket-{number}"
    (given,) = re.findall(r"^ExecStart=\S+ (.*)$", PAGE, re.MULTILINE)
    arguments = given.replace("/run/web-%i/socket", str(path)).split()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        umask=0,
    )
    try:
        until_blocking(lambda: path.exists() or process.poll() is not None, "it listens")
        assert process.poll() is None
        yield path
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, log


def ask(path: Path, target: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.get(f"http://web{target}", timeout=LIMIT)


def sends(metrics: str) -> float:
    (found,) = re.findall(r"^zc_anyio_sends_total (\S+)$", metrics, re.MULTILINE)
    return float(found)


@contextmanager
def proxied(folder: Path, sockets: list[Path]) -> Iterator[str]:
    """Run nginx with the page's configuration; yields its address."""
    part = block("nginx.conf")
    for number, path in enumerate(sockets, start=1):
        assert f"unix:/run/web-{number}/socket;" in part
        part = part.replace(f"/run/web-{number}/socket", str(path))
    with listener() as sock:
        port = sock.getsockname()[1]
        part = part.replace("listen 80;", f"listen 127.0.0.1:{port};")
        with running(folder, part, sock):
            yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_health_and_metrics(folder: Path, driver: str, backend: str) -> None:
    with served(folder, 1, f"--driver={driver}", f"--backend={backend}") as path:
        assert ask(path, "/health").text == driver
        assert ask(path, "/page.txt").text == "a page"
        metrics = ask(path, "/metrics").text
    assert f'zc_anyio_ring_info{{driver="{driver}"}} 1.0' in metrics
    assert sends(metrics) >= 2
    assert "process_resident_memory_bytes" in metrics


def test_nginx_in_front(folder: Path) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(served(folder, number)) for number in (1, 2)]
        url = stack.enter_context(proxied(folder, sockets))
        with httpx.Client(base_url=url, timeout=LIMIT) as client:
            for _ in range(4):
                assert client.get("/page.txt").text == "a page"
            assert client.get("/metrics").status_code == 404
        counted = [sends(ask(path, "/metrics").text) for path in sockets]
    assert sum(counted) >= 4
