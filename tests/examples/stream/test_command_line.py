"""``python -m examples.stream``: what it refuses to start with."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.support.commands import Finished, forbidden, run


def stream(*arguments: str, under: list[str] | None = None) -> Finished:
    return run(sys.executable, "-m", "examples.stream", *arguments, under=under or [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/no/such/folder"], "is not a folder"),
        (["--fps=0"], "--fps must be"),
        (["--width=10"], "--width must be"),
        (["--viewers=0"], "must be positive"),
        (["--driver=other"], "invalid choice"),
    ],
)
def test_arguments_out_of_range(arguments: list[str], told: str) -> None:
    done = stream(*arguments)
    assert done.status == 2
    assert told in done.errors


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
