"""From which size on zero copy costs less CPU than copying, in the lab (see lab/network.py).

Rounds on one TCP stream to an acknowledging peer take turns: every send zero-copied, every send
copied, and (up to 64 KiB) every send staged.  They send the same bytes again and again ("warm" in
the cache), or 64 MiB of different bytes in turn ("cold").  It prints CPU seconds a gigabyte, user
and system, median and quartiles, and compares what the peer has acknowledged with what was sent.

    .venv/bin/python -m benchmarks.lab .venv/bin/python -m benchmarks.threshold
"""

from __future__ import annotations

import socket
import statistics
import struct
import time

import anyio
import anyio.abc

import zc_anyio

PEER = ("10.99.0.2", 80)
ROUNDS = 5
BYTES = 128 << 20
SIZES = [1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20]
# struct tcp_info: tcpi_bytes_acked.
BYTES_ACKED_AT = 120
WAYS: dict[str, tuple[zc_anyio.ZeroCopy, int]] = {
    "zero copy": ("always", 0),
    "copied": ("never", 0),
    "staged": ("always", 1 << 20),
}
COLD_BYTES = 64 << 20


def acknowledged(sock: socket.socket) -> int:
    """Bytes that the peer has acknowledged, without the one for the SYN."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    count: int = struct.unpack_from("Q", info, BYTES_ACKED_AT)[0]
    return count - 1


async def cost(way: str, size: int, cold: bool) -> float:
    """Send and return CPU seconds a gigabyte."""
    zero_copy, threshold = WAYS[way]
    count = BYTES // size
    buffers = [b"x" * size for _ in range(COLD_BYTES // size if cold else 1)]
    with socket.create_connection(PEER) as sock:
        sock.setblocking(False)
        async with zc_anyio.open_ring(zero_copy=zero_copy, threshold=threshold):
            begun = time.process_time()
            async with zc_anyio.send_group() as group:
                for number in range(count):
                    await group.send(sock, buffers[number % len(buffers)])
            spent = time.process_time() - begun
            while acknowledged(sock) < size * count:  # noqa: ASYNC110 - nothing tells of it
                await anyio.sleep(0.001)
        assert acknowledged(sock) == size * count
    return spent / (size * count / 1e9)


def main() -> None:
    """Print a table."""
    for cold in (False, True):
        found: dict[tuple[int, str], list[float]] = {}
        for _ in range(ROUNDS):
            for size in SIZES:
                for way in WAYS:
                    if way != "staged" or size <= 64 << 10:
                        spent = anyio.run(cost, way, size, cold)
                        found.setdefault((size, way), []).append(spent)
        print(f"| bytes, {'cold' if cold else 'warm'} | " + " | ".join(WAYS) + " |")
        print("|---|" + "---|" * len(WAYS))
        for size in SIZES:
            cells = []
            for way in WAYS:
                if values := found.get((size, way)):
                    low, middle, high = statistics.quantiles(values, n=4)
                    cells.append(f"{middle:.3f} ({low:.3f}-{high:.3f})")
                else:
                    cells.append("")
            print(f"| {size} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
