"""What a part of a large send costs, and a notification when many datagrams are held.

Both should cost the same however many there are.  Printed is CPU time for each, and how it compares
with that of the smallest number; the best of five runs.  Python's garbage collector is off: in a
program that has a million objects it takes as long again.

    .venv/bin/python -m benchmarks.scaling
"""

from __future__ import annotations

import gc
import random
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import anyio

import zc_anyio
from zc_anyio._native._zc import ffi, lib

RUNS = 5
PARTS = [1 << 14, 1 << 16, 1 << 18, 1 << 20]
HELD = [1_000, 4_000, 16_000]
DATAGRAM = ffi.new("char[]", 64)


def drain(sock: socket.socket) -> None:
    memory = bytearray(1 << 20)
    while sock.recv_into(memory):
        pass


Driver = Literal["io_uring", "msg_zerocopy", "copy"]


async def send_parts(driver: Driver, parts: list[bytes]) -> float:
    """CPU seconds of this thread for a send of these parts, from the call to the release."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    reader = threading.Thread(target=drain, args=(peer,))
    reader.start()
    async with zc_anyio.open_ring(driver=driver) as ring:
        before = time.thread_time()
        async with zc_anyio.send_group(ring=ring) as group:
            await group.send(ours, parts)
        seconds = time.thread_time() - before
    ours.close()
    reader.join()
    peer.close()
    return seconds


def notify(order: Callable[[list[int]], None], count: int) -> float:
    """CPU seconds of the accounting for the notifications of so many held datagrams."""
    core = lib.zc_core_new(0, 4 * count)  # a socket holds a quarter at most
    sock = lib.zc_sock_new(core, 1, 1, lib.ZC_DATAGRAM, 1)
    ctx = lib.zc_ctx_new(core, 1, 0, 1 << 40, lib.ZC_POLICY_ALWAYS, 0)
    view = ffi.new("struct zc_request_view *")
    for number in range(count):
        assert lib.zc_queue(core, ctx, sock, DATAGRAM, 64, 0) >= 0
        assert lib.zc_next_request(core, view) == 1
        assert lib.zc_request_number(core, view.user_data, number) == 0
        assert lib.zc_complete(core, view.user_data, 64, lib.ZC_MORE) == 0
    numbers = list(range(count))
    order(numbers)
    before = time.thread_time()
    for number in numbers:
        lib.zc_notify_range(core, sock, number, number, 0)
    seconds = time.thread_time() - before
    stats = ffi.new("struct zc_stats *")
    lib.zc_core_stats(core, stats)
    assert (stats.held, stats.zero_copied) == (0, count)
    assert lib.zc_core_free(core) == 0
    return seconds


def show(name: str, counts: list[int], measure: Callable[[int], float]) -> None:
    print(f"{name:<52} CPU of each    times the first")
    first = 0.0
    for count in counts:
        each = min(measure(count) for _ in range(RUNS)) / count
        first = first or each
        print(f"  {count:>10,} {each * 1e9:>48.0f} ns {each / first:>16.2f}", flush=True)


def in_order(numbers: list[int]) -> None:
    pass


def send(driver: Driver, count: int) -> float:
    return anyio.run(send_parts, driver, [b"xy"] * count)


def main() -> None:
    gc.disable()
    for driver in get_args(Driver):
        show(f"parts of 2 bytes in one send, {driver}", PARTS, partial(send, driver))
    for name, order in {
        "in order": in_order,
        "the last first": list[int].reverse,
        "in any order": random.Random(1).shuffle,
    }.items():
        show(f"notifications of held datagrams, {name}", HELD, partial(notify, order))


if __name__ == "__main__":
    main()
