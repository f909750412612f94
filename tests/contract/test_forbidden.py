"""Programs run unchanged where io_uring, or pinning memory, is refused to their process."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.commands import forbidden, memlock, run
from tests.support.needs import missing, why_not
from tests.support.peers import listener
from tests.support.waiting import LIMIT

MIB = 1 << 20

# The program overwrites every frame as soon as the group that has sent it is left.
PROGRAM = """
import hashlib, json, os, sys

import anyio

import zc_anyio

MIB = 1 << 20


async def main(driver, port, total):
    frames = [bytearray(os.urandom(MIB)) for _ in range(8)]
    meant = hashlib.sha256()
    try:
        async with (
            await anyio.connect_tcp("127.0.0.1", port) as stream,
            zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring,
        ):
            for first in range(0, total // MIB, len(frames)):
                # Of a quarter of the window each frame is a request.
                async with zc_anyio.send_group(window=4 << 20) as group:
                    for number, frame in enumerate(frames, first):
                        frame[:8] = number.to_bytes(8, "big")
                        meant.update(frame)
                        await group.send(stream, frame)
            counters = ring.statistics()
    except zc_anyio.DriverUnavailable as exc:
        print(json.dumps({"refused": str(exc)}))
        return
    print(
        json.dumps(
            {
                "driver": counters.driver,
                "unavailable": ring.capabilities.unavailable,
                "sends": counters.sends,
                "bytes": counters.bytes_sent,
                "reported": counters.zero_copied + counters.copied,
                "requests": counters.requests,
                "completions": counters.completions,
                "sha256": meant.hexdigest(),
            }
        )
    )


backend, driver, port, total = sys.argv[1:]
anyio.run(
    main, driver, int(port), int(total),
    backend="trio" if backend == "trio" else "asyncio",
    backend_options={"use_uvloop": True} if backend == "uvloop" else None,
)
"""


@dataclass(frozen=True)
class Received:
    size: int
    sha256: str


def send(
    driver: str, *, under: Sequence[str] = (), backend: str = "asyncio", total: int = 16 * MIB
) -> tuple[Any, Received]:
    """Run the program; return what it said, and what its peer got."""
    with listener() as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(LIMIT)

        def receive() -> Received:
            digest, size = hashlib.sha256(), 0
            sock, _ = server.accept()
            with sock:
                sock.settimeout(LIMIT)
                while chunk := sock.recv(MIB):
                    digest.update(chunk)
                    size += len(chunk)
            return Received(size, digest.hexdigest())

        received: Future[Received] = pool.submit(receive)
        port = server.getsockname()[1]
        arguments = (backend, driver, str(port), str(total))
        done = run(sys.executable, "-W", "error", "-c", PROGRAM, *arguments, under=under)
        assert (done.status, done.errors) == (0, "")
        return done.json, received.result(LIMIT)


@pytest.fixture(autouse=True)
def _both_drivers() -> None:
    for driver in ("io_uring", "msg_zerocopy"):
        if (reason := why_not(driver)) is not None:
            missing(f"without a restriction, the driver {driver} cannot run: {reason}")


def check(said: Any, received: Received, *, driver: str, total: int) -> None:
    assert said["driver"] == driver
    assert said["sends"] == said["reported"] == total // MIB
    assert said["bytes"] == received.size == total
    assert said["sha256"] == received.sha256


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize(
    ("driver", "runs"),
    [("auto", "msg_zerocopy"), ("msg_zerocopy", "msg_zerocopy"), ("copy", "copy")],
)
def test_every_driver_that_remains_sends(backend: str, driver: str, runs: str) -> None:
    total = 256 * MIB
    said, received = send(driver, under=forbidden("EPERM"), backend=backend, total=total)
    check(said, received, driver=runs, total=total)
    assert list(said["unavailable"]) == (["io_uring"] if driver == "auto" else [])
    for reason in said["unavailable"].values():
        assert "forbidden" in reason
        assert "seccomp" in reason
    # A request that was sent zero-copy has a notification besides its result.
    assert (said["completions"] > said["requests"]) == (runs == "msg_zerocopy")


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_without_a_filter_the_same_program_takes_io_uring(backend: str) -> None:
    said, received = send("auto", backend=backend)
    check(said, received, driver="io_uring", total=16 * MIB)
    assert said["unavailable"] == {}


@pytest.mark.parametrize(
    ("name", "calls", "reason"),
    [
        ("EPERM", "all", "forbidden to this process: by a seccomp filter"),
        ("EPERM", "setup", "forbidden to this process: by a seccomp filter"),
        ("EPERM", "enter", "forbidden to this process: by a seccomp filter"),
        ("ENOSYS", "all", "this kernel has no io_uring"),
        ("ENOMEM", "setup", "not enough lockable memory"),
    ],
)
def test_refused_at_set_up(name: str, calls: str, reason: str) -> None:
    under = forbidden(name, calls)
    said, received = send("auto", under=under)
    check(said, received, driver="msg_zerocopy", total=16 * MIB)
    assert list(said["unavailable"]) == ["io_uring"]
    assert reason in said["unavailable"]["io_uring"]

    said, received = send("io_uring", under=under)
    assert reason in said["refused"]
    assert received.size == 0


@pytest.mark.parametrize("limit", [0, 1 * MIB])
@pytest.mark.parametrize("driver", ["auto", "msg_zerocopy", "copy"])
def test_memory_that_may_not_be_pinned_is_copied(driver: str, limit: int) -> None:
    said, received = send(driver, under=memlock(limit))
    check(said, received, driver=said["driver"] if driver == "auto" else driver, total=16 * MIB)
    if limit == 0 and said["driver"] == "msg_zerocopy":
        # Zero-copy requests were refused, so no notification was ever due.
        assert said["requests"] > said["sends"]
        assert said["completions"] == said["requests"]
