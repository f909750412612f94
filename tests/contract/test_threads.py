"""Threads: each may have a ring at the same time, and may drop what belongs to another.

On a free-threaded Python the threads of these tests run in parallel.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue
from socket import socket
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, tcp_pair
from tests.support.waiting import LIMIT, until
from zc_anyio._native.lib import queue, queue_or_send

THREADS = 2
ROUNDS = 25
KIB = 1 << 10

Backend = tuple[str, dict[str, Any]]


def in_threads(function: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Call a function with 0, 1 ... in a thread each, all at once; return what they returned."""
    start = threading.Barrier(count)

    def call(number: int) -> Any:
        start.wait(LIMIT)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def run(backend: Backend, main: Callable[..., Any], *arguments: Any) -> Any:
    name, options = backend
    return anyio.run(main, *arguments, backend=name, backend_options=options)


class Sent:
    """What one thread has sent, socket by socket, and what its ring must have counted."""

    def __init__(self, sockets: int) -> None:
        self.expected = [bytearray() for _ in range(sockets)]
        self.sends = 0
        self.counted: Any = None

    def note(self, number: int, data: bytes | bytearray) -> None:
        self.expected[number] += data
        self.sends += 1

    @property
    def size(self) -> int:
        return sum(map(len, self.expected))


async def send_everything(sent: Sent, clients: list[socket], driver: Any, seed: int) -> None:
    """Send all kinds of buffers at random: staged, pinned, changed when released, of a pool."""
    choose = random.Random(seed)
    async with (
        zc_anyio.open_ring(driver=driver) as ring,
        zc_anyio.open_buffer_pool(buffer_size=32 * KIB, count=4) as pool,
    ):
        changed = bytearray(48 * KIB)
        for _ in range(ROUNDS):
            async with zc_anyio.send_group(window=256 * KIB) as group:
                changed[:] = choose.randbytes(len(changed))
                for number, client in enumerate(clients):
                    await group.send(client, changed)
                    sent.note(number, changed)
                    small = choose.randbytes(choose.randrange(1, 3000))
                    await group.send(client, small)
                    sent.note(number, small)
                    view = await pool.acquire()
                    view[:] = choose.randbytes(len(view))
                    sent.note(number, bytes(view))
                    await group.send(client, view)
                    parts = [choose.randbytes(100), bytearray(choose.randbytes(20 * KIB))]
                    await group.send(client, parts)
                    sent.note(number, b"".join(parts))
                same = choose.randbytes(20 * KIB)
                await group.broadcast(clients, same)
                for number in range(len(clients)):
                    sent.note(number, same)
        sent.counted = ring.statistics()
    for client in clients:
        client.close()


def test_a_ring_in_each_of_two_threads(anyio_backend: Backend, driver: Any) -> None:
    with ExitStack() as stack:
        pairs = [[stack.enter_context(tcp_pair()) for _ in range(3)] for _ in range(THREADS)]
        readers = [[stack.enter_context(Reader(peer)) for _, peer in mine] for mine in pairs]
        threads = [Sent(3) for _ in range(THREADS)]
        in_threads(
            lambda number: run(
                anyio_backend,
                send_everything,
                threads[number],
                [client for client, _ in pairs[number]],
                driver,
                number,
            )
        )
        for sent, mine in zip(threads, readers, strict=True):
            counted = sent.counted
            assert (counted.sends, counted.bytes_sent) == (sent.sends, sent.size)
            assert counted.zero_copied + counted.copied + counted.staged == sent.sends
            assert counted.staged >= ROUNDS * 3
            for expected, reader in zip(sent.expected, mine, strict=True):
                assert anyio.run(reader.all) == expected


def test_connections_that_move_between_threads(anyio_backend: Backend, driver: Any) -> None:
    """A ring in another thread goes on with what the first ring has learned of a socket."""

    async def send_one(sock: socket, data: bytes) -> int:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
            async with zc_anyio.send_group() as group:
                await group.send(sock, data[: 20 * KIB])
                await group.send(sock, data[20 * KIB :])
        return ring.statistics().sends

    def pass_around(number: int) -> int:
        choose = random.Random(number)
        sends = 0
        for _ in range(ROUNDS):
            sock, expected = waiting[number].get(timeout=LIMIT)
            data = choose.randbytes(40 * KIB)
            sends += run(anyio_backend, send_one, sock, data)
            expected += data
            waiting[1 - number].put((sock, expected))
        return sends

    waiting: list[Queue[tuple[socket, bytearray]]] = [Queue() for _ in range(THREADS)]
    sent = [bytearray() for _ in range(2 * THREADS)]
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair()) for _ in sent]
        readers = [stack.enter_context(Reader(peer)) for _, peer in pairs]
        for number, ((client, _), expected) in enumerate(zip(pairs, sent, strict=True)):
            waiting[number % THREADS].put((client, expected))
        assert in_threads(pass_around) == [2 * ROUNDS] * THREADS
        for client, _ in pairs:
            client.close()
        assert [anyio.run(reader.all) for reader in readers] == sent


def test_streams_between_two_threads(anyio_backend: Backend, driver: Any) -> None:
    """Both ends are streams of rings, in different threads."""
    ports: list[int] = []
    listening = threading.Event()

    async def serve() -> int:
        async with zc_anyio.open_ring(driver=driver) as ring:
            listener: Any = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
            ports.append(listener.extra(anyio.abc.SocketAttribute.local_port))
            listening.set()
            async with listener, await listener.listeners[0].accept() as stream:
                async for chunk in stream:
                    await stream.send(chunk)
            return ring.statistics().bytes_sent

    async def echo() -> int:
        await anyio.to_thread.run_sync(listening.wait, LIMIT)
        choose = random.Random(1)
        async with (
            zc_anyio.open_ring(driver=driver) as ring,
            await zc_anyio.connect_tcp("127.0.0.1", ports[0]) as stream,
        ):
            for _ in range(50):
                data = choose.randbytes(choose.randrange(1, 100 * KIB))
                await stream.send(data)
                back = bytearray()
                while len(back) < len(data):
                    back += await stream.receive()
                assert back == data
            return ring.statistics().bytes_sent

    served, echoed = in_threads(lambda number: run(anyio_backend, (serve, echo)[number]))
    assert served == echoed


@pytest.mark.parametrize("anyio_backend", [("trio", {})], indirect=True)
def test_rings_that_threads_open_at_the_same_time(anyio_backend: Backend) -> None:
    """The first ring of a process does the set-up, only once; ``os.exec*`` checks all rings."""
    script = """
import sys, threading, anyio, trio, zc_anyio

async def main():
    async with zc_anyio.open_ring(driver="copy"):
        await anyio.sleep(0)

def many():
    start.wait()
    for _ in range(20):
        anyio.run(main, backend="trio")

def failed(told):
    failures.append(told.exc_value)

failures = []
threading.excepthook = failed
sys.setswitchinterval(1e-6)
start = threading.Barrier(5)
threads = [threading.Thread(target=many) for _ in range(4)]
for thread in threads:
    thread.start()
start.wait()
while any(thread.is_alive() for thread in threads):
    sys.audit("os.exec", "program", [], None)  # what os.execv does first
assert not failures, failures
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=50, check=True)


@pytest.mark.anyio
async def test_a_pool_buffer_that_another_thread_drops(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_for_it() -> None:
        again.append(await pool.acquire())

    def put(slot: Any) -> None:
        given_back_in.append(threading.get_ident())
        really_put(slot)

    again: list[memoryview] = []
    given_back_in: list[int] = []
    async with (
        zc_anyio.open_ring(driver=driver),
        zc_anyio.open_buffer_pool(buffer_size=4 * KIB, count=1) as pool,
    ):
        really_put = pool._put
        monkeypatch.setattr(pool, "_put", put)
        held = [await pool.acquire()]
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_for_it)
                await until(lambda: pool.waiters, "a task that waits")
                thread = threading.Thread(target=held.clear)
                thread.start()
                thread.join()
        assert len(again[0]) == 4 * KIB
        assert given_back_in == [threading.get_ident()]


@pytest.mark.anyio
async def test_a_pool_belongs_to_its_thread(driver: Any) -> None:
    async def acquire() -> None:
        await pool.acquire()

    async with (
        zc_anyio.open_ring(driver=driver),
        zc_anyio.open_buffer_pool(buffer_size=4 * KIB, count=2) as pool,
    ):
        view = await pool.acquire()
        for attempt in (
            lambda: pool.release(view),
            lambda: pool.grow(1),
            lambda: anyio.run(acquire),
        ):
            with pytest.raises(RuntimeError, match="another thread"):
                await anyio.to_thread.run_sync(attempt)
        pool.release(view)
        assert (pool.count, pool.free) == (2, 2)


free_threaded = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has its GIL"
)


@free_threaded
def test_threads_do_not_count_references_to_the_functions_that_send() -> None:
    # With deferred reference counting, the count is larger than any program reaches.
    assert min(map(sys.getrefcount, (queue, queue_or_send))) > 1 << 32


@free_threaded
def test_importing_leaves_the_gil_off() -> None:
    script = """
import sys, zc_anyio, zc_anyio.asgi, zc_anyio.httpcore, zc_anyio.lowlevel, trio, uvloop
assert not sys._is_gil_enabled()
"""
    # Python warns of a module that switches it on.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script], timeout=50, check=True, env=environment
    )
