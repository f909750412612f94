"""The benchmarks' harness: it counts at the receiver, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.commands import ROOT, run
from tests.support.needs import need_command, need_root
from tests.support.netns import Rig
from tests.support.waiting import LIMIT

# In the lab, with connections that a peer which reads nothing keeps from ending.
SLEEPER = """
import socket, time
stalled = [socket.create_connection(("10.99.0.2", 9999)) for _ in range(10)]
for sock in stalled:
    sock.send(bytes(100_000))
print("ready", flush=True)
time.sleep(3600)
"""


def need_lab() -> None:
    need_root("making the lab")
    for name, package in (("clang", "clang libbpf-dev"), ("ip", "iproute2"), ("tc", "iproute2")):
        need_command(name, package)


def test_a_peer_that_sends_less_than_it_claims_is_refused() -> None:
    need_lab()
    done = run(sys.executable, "-m", "tests.benchmarks.cheating_peer")
    assert done.status == 0, done.errors
    assert done.output.splitlines() == [
        "TCP honest: [2048]",
        "TCP cheating: Miscount: 1024 bytes were to be sent, and 512 arrived",
        "UDP honest: [2048]",
        "UDP cheating: Miscount: 1024 bytes were to be sent, and 512 arrived",
    ]


def test_a_crash_leaves_no_namespace(namespaces: Rig) -> None:
    need_lab()
    command = [sys.executable, "-m", "benchmarks.lab", sys.executable, "-c", SLEEPER]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        try:
            assert sleeper.stdout.readline() == b"ready\n"
            lab = Path(f"/proc/{sleeper.pid}/ns/net").readlink()
            assert lab != Path("/proc/self/ns/net").readlink()
            # A device whose other end is in the lab lives as long as the lab does.
            namespaces.sender.command(
                *("ip", "link", "add", "tie", "type", "veth", "peer", "name", "tied"),
                *("netns", str(sleeper.pid)),
            )
            sleeper.send_signal(signal.SIGKILL)
        finally:
            sleeper.kill()
    until = time.monotonic() + LIMIT
    while "tie@" in (links := namespaces.sender.run(_links)) and time.monotonic() < until:
        time.sleep(0.1)
    assert "tie@" not in links


def _links() -> str:
    shown = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True)
    return shown.stdout
