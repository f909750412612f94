"""Many members, some of them slow: the load generator finds nothing lost or out of order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT
from tests.support.served import Served, serve

MEMBERS = int(os.environ.get("ZC_ANYIO_CHAT_MEMBERS", "190"))
SLOW = MEMBERS // 19
SECONDS = float(os.environ.get("ZC_ANYIO_CHAT_SECONDS", "6"))
KIB = 1 << 10


def load(server: Served, folder: Path, *arguments: str) -> dict[str, Any]:
    """Put load on a server, and return the figures."""
    figures = folder / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "examples.load", "chat", server.url),
            *(f"--seconds={SECONDS}", f"--json={figures}", *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 50,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert not done.stdout
    found: dict[str, Any] = json.loads(figures.read_text())
    return found


@pytest.mark.parametrize("way", ["--backend=uvloop", "--backend=trio"])
def test_slow_members_delay_nobody_and_nothing_is_lost(way: str, tmp_path: Path) -> None:
    connections = f"--connections={MEMBERS + SLOW + 10}"
    with serve("examples.chat", way, connections, "--lag=1") as server:
        figures = load(
            server,
            tmp_path,
            f"--members={MEMBERS}",
            f"--slow={SLOW // 2}",
            f"--stalled={SLOW - SLOW // 2}",
            "--rate=10",
            # More than the kernel takes at once for those that read nothing.
            "--size=2000",
            "--picture-every=0.5",
            f"--picture-size={64 * KIB}",
        )
        assert figures["clients"] == MEMBERS
        assert figures["sent"] >= 10
        assert figures["deliveries"] == figures["sent"] * MEMBERS
        assert (figures["lost"], figures["disordered"], figures["failed"]) == (0, 0, 0)
        # The slow ones were there, were noticed, and are gone.
        assert server.metrics()['chat_dropped_total{code="1013"}'] >= SLOW - SLOW // 2
        assert figures["server_metrics"]["process_resident_memory_bytes"] > 0
        assert set(figures["latency_ms"]) == {"p50", "p90", "p99", "p99.9", "max"}


def test_the_load_fails_when_something_is_lost(tmp_path: Path) -> None:
    # A member may say hardly anything: what is refused is lost.
    with serve("examples.chat", "--message-rate=0.001") as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "examples.load", "chat", server.url, "--members=1"),
                *("--rate=100", "--seconds=1", f"--json={tmp_path}/figures.json"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert json.loads((tmp_path / "figures.json").read_text())["lost"] > 0
