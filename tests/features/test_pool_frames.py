"""A video-like loop over a pool: frames to receivers of different speeds."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import numpy as np
import pytest

import zc_anyio
from tests.support.backends import one_backend
from tests.support.needs import SANITIZED
from tests.support.peers import parked_pair
from tests.support.waiting import LIMIT, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

FRAME = 1 << 20
FRAMES = 40
POOL = 4
RECEIVERS = 20


def resident() -> int:
    """Return how much memory the process occupies."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


class Receiver:
    """Checks in a thread that each frame is complete and in order; rests after each."""

    def __init__(self, sock: socket.socket, start: threading.Event, pause: float) -> None:
        self.frames = 0
        self.wrong: str | None = None
        self._socket = sock
        self._start = start
        self._pause = pause
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        frame = np.empty(FRAME, np.uint8)
        self._start.wait(LIMIT)
        while True:
            filled = 0
            while filled < FRAME:
                taken = self._socket.recv_into(memoryview(frame)[filled:])
                if not taken:
                    if filled:
                        self.wrong = f"the stream ended within frame {self.frames}"
                    return
                filled += taken
            if not frame.min() == frame.max() == self.frames + 1:
                self.wrong = f"frame {self.frames} is torn: {np.unique(frame)}"
                return
            self.frames += 1
            time.sleep(self._pause)


@one_backend
async def test_frames_for_20_receivers_of_different_speeds_on_asyncio(driver: str) -> None:
    start = threading.Event()
    drawn = 0
    sizes: list[int] = []

    async def produce() -> None:
        nonlocal drawn
        async with zc_anyio.send_group() as group:
            for number in range(FRAMES):
                view = await pool.acquire()
                np.frombuffer(view, np.uint8).fill(number + 1)
                drawn += 1
                await group.broadcast(clients, view)
                group.flush()
                sizes.append(resident())

    with ExitStack() as stack:
        pairs = [stack.enter_context(parked_pair()) for _ in range(RECEIVERS)]
        clients = [client for client, _ in pairs]
        receivers = [
            Receiver(peer, start, pause=number % 5 / 1000) for number, (_, peer) in enumerate(pairs)
        ]
        stack.callback(start.set)
        async with (
            zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring,
            zc_anyio.open_buffer_pool(buffer_size=FRAME, count=POOL) as pool,
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(produce)
            # A frame does not fit a connection, so all are held as long as nobody reads.
            await until(lambda: drawn == POOL)
            await anyio.sleep(0.1)
            assert (drawn, pool.free) == (POOL, 0)
            start.set()
            await until(lambda: drawn == FRAMES)
            await until(lambda: pool.free == POOL)
            assert ring.statistics().sends == FRAMES * RECEIVERS
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        for receiver in receivers:
            await anyio.to_thread.run_sync(receiver.thread.join, LIMIT)
            assert (receiver.wrong, receiver.frames) == (None, FRAMES)
    if not SANITIZED:
        assert max(sizes) - sizes[POOL * 2] < 2 * FRAME
