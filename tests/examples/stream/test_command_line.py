"""``python -m examples.stream``: what it refuses to start with."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.support.commands import Finished, forbidden, memlock, run
from tests.support.served import serve


def stream(*arguments: str, under: list[str] | None = None) -> Finished:
    return run(sys.executable, "-m", "examples.stream", *arguments, under=under or [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/no/such/folder"], "is not a folder"),
        (["--fps=0.5"], "--fps must be"),
        (["--width=10"], "--width must be"),
        (["--viewers=0"], "--viewers: "),
        (["--fps=nan"], "--fps: "),
        (["--stall=inf"], "--stall: "),
        (["--stall=-1"], "--stall: "),
        (["--least-rate=0"], "--least-rate: "),
        (["--connections=0"], "--connections: "),
        (["--connections=many"], "--connections: "),
        (["--port=99999"], "--port: "),
        (["--port=-1"], "--port"),
        (["--driver=other"], "invalid choice"),
        (["--forwarded-allow-ips=10.0.0.1,here"], "--forwarded-allow-ips: "),
    ],
)
def test_arguments_out_of_range(arguments: list[str], told: str) -> None:
    done = stream(*arguments)
    assert done.status == 2
    assert told in done.errors
    assert "Traceback" not in done.errors


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = stream(str(tmp_path), f"--port={port}")
    assert done.status == 1
    assert done.errors.startswith(f"127.0.0.1, port {port}: ")
    assert "Traceback" not in done.errors


def test_a_driver_that_cannot_run(tmp_path: Path) -> None:
    done = stream(str(tmp_path), "--port=0", "--driver=io_uring", under=forbidden("EPERM"))
    assert done.status == 1
    assert done.errors.startswith("the driver io_uring cannot run: ")


@pytest.mark.parametrize("driver", ["auto", "copy"])
def test_it_says_how_it_sends_and_why_by_no_better_driver(tmp_path: Path, driver: str) -> None:
    options = (str(tmp_path), f"--driver={driver}")
    with serve("examples.stream", *options, under=forbidden("EPERM")) as server:
        server.stop()
    sends_by = server.told.split()[-1]
    assert sends_by != "io_uring"
    if driver == "copy":
        assert (sends_by, server.output) == ("copy", "")
    else:
        assert "io_uring cannot run here: " in server.output


def test_it_says_that_little_memory_may_be_locked(tmp_path: Path) -> None:
    with serve("examples.stream", str(tmp_path), under=memlock(1 << 20)) as server:
        server.stop()
    assert "much will be copied: " in server.output


def test_answers_are_logged(tmp_path: Path) -> None:
    with serve("examples.stream", str(tmp_path), "--access-log") as server:
        server.ask("/")
        server.ask("/nothing")
        server.stop()
    first, second = server.output.splitlines()
    assert first.endswith(' - "GET / HTTP/1.1" 200')
    assert second.endswith(' - "GET /nothing HTTP/1.1" 404')
