"""The load generator watches the live picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from examples.load.live import Parts
from tests.support.commands import ROOT
from tests.support.served import LIMIT, serve


def part(number: int, size: int) -> bytes:
    head = f"--x\r\nContent-Type: image/jpeg\r\nContent-Length: {size}\r\nX-Frame: {number}\r\n\r\n"
    return head.encode() + b"\r\n\r\n".ljust(size, b"-")[:size] + b"\r\n"


@given(st.lists(st.integers(0, 300), max_size=5), st.lists(st.integers(1, 200)))
def test_parts_are_found_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    data = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"
    data += b"".join(part(number, size) for number, size in enumerate(sizes))
    parts = Parts()
    found = []
    while data:
        cut = cuts.pop() if cuts else len(data)
        found += [int(head["x-frame"]) for head in parts.feed(data[:cut])]
        data = data[cut:]
    assert found == list(range(len(sizes)))


def test_viewers_get_frames_in_order_and_stalled_ones_are_counted(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    with serve("examples.stream", str(tmp_path), "--stall=1") as server:
        done = subprocess.run(
            [
                *(sys.executable, "-W", "error", "-m", "examples.load", "live", server.url),
                *("--viewers=20", "--slow=2", "--stalled=2", "--seconds=3", "--warm-up=0.5"),
                f"--json={figures}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    seen = json.loads(figures.read_text())
    assert (seen["clients"], seen["failed"], seen["disordered"]) == (20, 0, 0)
    assert seen["deliveries"] > 20
    assert seen["delivered_bytes"] > 0
    assert seen["latency_ms"]["p50"] > 0
