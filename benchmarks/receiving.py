"""CPU time to receive datagrams of 1,400 bytes over loopback, from a process that sends trains.

``python benchmarks/receiving.py``: ``receive_segments`` beside anyio's UDP socket and a loop of
``recvfrom``, in turns.  The sender waits for the receiver after each burst, which fits the receive
buffer: each datagram has to arrive, or the way is left out.  anyio's socket on uvloop is, since it
keeps 100 datagrams, and uvloop reads more before a task runs.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import SocketAttribute

import zc_anyio

SIZE = 1400
TRAIN = 46
TRAINS = 20
BURST = TRAIN * TRAINS
RECEIVE_BUFFER = 4 << 20
# include/uapi/linux/udp.h, include/uapi/asm-generic/socket.h
UDP_SEGMENT, SO_RCVBUFFORCE = 103, 33
BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
# Returns how many datagrams came.
Receive = Callable[[], Awaitable[int]]


def send(port: int, bursts: int) -> None:
    """Send bursts to a port; each one when a byte on standard input asks for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        sock.connect(("127.0.0.1", port))
        for _ in range(bursts):
            if not os.read(0, 1):
                return
            for _ in range(TRAINS):
                sock.send(bytes(SIZE * TRAIN))


async def measure(raw: socket.socket, receive: Receive, bursts: int) -> float:
    """Return microseconds of CPU time of this process for each datagram.

    :raises RuntimeError: some are missing.
    """
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    command = [sys.executable, __file__, f"--send-to={raw.getsockname()[1]}", f"--bursts={bursts}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as sender:  # noqa: ASYNC220
        assert sender.stdin is not None
        time.sleep(0.3)  # noqa: ASYNC251  # Until it has started.
        taken = 0.0
        for _ in range(bursts):
            os.write(sender.stdin.fileno(), b".")
            # Everything of a burst waits when it is received, for each way alike.
            time.sleep(0.004)  # noqa: ASYNC251
            start = time.process_time()
            got = 0
            with anyio.move_on_after(5):
                while got < BURST:
                    got += await receive()
            taken += time.process_time() - start
            if got != BURST:
                raise RuntimeError(f"{got} of {BURST} datagrams have come")
    return taken / (bursts * BURST) * 1e6


async def trains(bursts: int) -> float:
    """``receive_segments`` of this library."""
    async with (
        zc_anyio.open_ring(driver="copy"),
        await zc_anyio.create_udp_socket(local_host="127.0.0.1") as sock,
    ):
        # From the first call on the kernel gathers.
        with anyio.move_on_after(0.01):
            await sock.receive_segments()

        async def receive() -> int:
            data, size, _ = await sock.receive_segments()
            return -(-len(data) // size)

        return await measure(sock.extra(SocketAttribute.raw_socket), receive, bursts)


async def anyio_receive(bursts: int) -> float:
    """``receive`` of anyio's UDP socket."""
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as sock:

        async def receive() -> int:
            data, _ = await sock.receive()
            return len(data) // SIZE

        return await measure(sock.extra(SocketAttribute.raw_socket), receive, bursts)


async def plain(bursts: int) -> float:
    """A loop of blocking ``recvfrom``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)

        async def receive() -> int:
            for _ in range(BURST):
                sock.recvfrom(65536)
            return BURST

        return await measure(sock, receive, bursts)


def main() -> None:
    """Measure in turns, and print medians and extremes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bursts", type=int, default=100, help=f"of {BURST} each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--send-to", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send_to:
        send(options.send_to, options.bursts)
        return
    for name, backend in BACKENDS.items():
        results: dict[str, list[float]] = {}
        ways = [trains, anyio_receive, plain]
        for _ in range(options.rounds):
            for way in list(ways):
                try:
                    taken = anyio.run(way, options.bursts, **backend)
                except RuntimeError as exc:
                    print(f"{name:8} {way.__doc__} {exc}", flush=True)
                    ways.remove(way)
                else:
                    results.setdefault(str(way.__doc__), []).append(taken)
        ours = statistics.median(results[str(trains.__doc__)])
        for text, values in results.items():
            median = statistics.median(values)
            print(
                f"{name:8} {median:7.3f} us ({min(values):.3f} to {max(values):.3f})  "
                f"{median / ours:6.1f} times  {text}",
                flush=True,
            )


if __name__ == "__main__":
    main()
