"""A ring belongs to one thread, one event loop and one process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import anyio
import pytest
import trio

import zc_anyio
from tests.support.backends import one_backend
from tests.support.peers import Reader, receive_exactly, tcp_pair
from tests.support.waiting import until, until_held

MIB = 1 << 20
PREAMBLE = """
    import os, socket, sys, threading
    import anyio
    import zc_anyio

    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    peer, _ = listener.accept()
"""


def run(script: str, backend: tuple[str, dict[str, Any]], *arguments: str) -> str:
    """Run the coroutine function ``main`` of a script in a process of its own."""
    name, options = backend
    script = textwrap.dedent(PREAMBLE) + textwrap.dedent(script)
    script += f"\nanyio.run(main, backend={name!r}, backend_options={options!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.anyio
async def test_another_thread(driver: Any) -> None:
    def elsewhere() -> None:
        for attempt in (
            lambda: group.send_nowait(client, b"no"),
            lambda: group.flush(),
            lambda: group.statistics(),
            lambda: ring.statistics(),
        ):
            with pytest.raises(RuntimeError, match="another thread"):
                attempt()

    async def in_a_loop_there() -> None:
        with pytest.raises(RuntimeError, match="another thread"):
            async with zc_anyio.send_group(ring=ring):
                pass
        with pytest.raises(RuntimeError, match="another thread"):
            await group.send(client, b"no")
        with pytest.raises(RuntimeError, match="another thread"):
            await group.broadcast([client], b"no")

    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await anyio.to_thread.run_sync(elsewhere)
            await anyio.to_thread.run_sync(anyio.run, in_a_loop_there)
            assert ring.statistics().sends == 0


@pytest.mark.anyio
async def test_each_thread_may_have_a_ring(driver: Any) -> None:
    async def main(number: int) -> None:
        async with zc_anyio.open_ring(driver=driver):
            for _ in range(20):
                async with zc_anyio.send_group() as group:
                    await group.send(pairs[number][0], bytearray([number]) * 50_000)

    with tcp_pair() as one, tcp_pair() as two, Reader(one[1]), Reader(two[1]):
        pairs = [one, two]
        async with anyio.create_task_group() as tg:
            for number in range(2):
                tg.start_soon(anyio.to_thread.run_sync, anyio.run, main, number)
        one[0].close()
        two[0].close()


@pytest.mark.anyio
@one_backend
async def test_another_loop_of_the_same_thread_which_plain_asyncio_allows(
    driver: Any,
) -> None:
    async def other_loop() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            async with zc_anyio.send_group(ring=ring):
                pass

    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            # asyncio allows a trio loop to run inside one of its own callbacks.
            trio.run(other_loop)
            group.send_nowait(client, b"still works")


@pytest.mark.anyio
async def test_another_event_loop_later(driver: Any) -> None:
    kept: list[zc_anyio.Ring] = []

    async def open_and_suspend() -> None:
        context = zc_anyio.open_ring(driver=driver)
        kept.append(await context.__aenter__())
        await context.__aexit__(None, None, None)

    def first() -> None:
        asyncio.run(open_and_suspend())

    await anyio.to_thread.run_sync(first)
    with pytest.raises(RuntimeError, match="the ring"):
        async with zc_anyio.send_group(ring=kept[0]):
            pass


def test_a_forked_child(anyio_backend: tuple[str, dict[str, Any]], driver: Any) -> None:
    output = run(
        """
        async def main():
            async with zc_anyio.open_ring(driver=sys.argv[1]) as ring:
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytearray(1 << 20))
                    await anyio.sleep(0.01)
                    child = os.fork()
                    if child == 0:
                        for attempt in (
                            lambda: group.send_nowait(client, b"no"),
                            lambda: group.flush(),
                            lambda: ring.statistics(),
                        ):
                            try:
                                attempt()
                            except RuntimeError as exc:
                                os.write(1, f"{exc}\\n".encode())
                        os._exit(0)
                    _, status = os.waitpid(child, 0)
                    assert status == 0
                    group.send_nowait(client, b"the parent goes on")
                    received = bytearray()

                    def receive():
                        while len(received) < (1 << 20) + 18:
                            received.extend(peer.recv(1 << 20))

                    await anyio.to_thread.run_sync(receive)
                    assert received.endswith(b"the parent goes on")
                assert ring.statistics().sends == 2
        """,
        anyio_backend,
        driver,
    )
    lines = output.splitlines()
    assert len(lines) == 3
    assert all("forked" in line for line in lines)


def test_a_forked_child_that_leaves_by_an_exception(
    anyio_backend: tuple[str, dict[str, Any]], driver: Any
) -> None:
    # The child leaves the scopes of the parent's ring, and must not use it.
    output = run(
        """
        async def main():
            child = None
            try:
                async with zc_anyio.open_ring(driver=sys.argv[1]) as ring:
                    async with zc_anyio.send_group() as group:
                        await group.send(client, bytearray(1000))
                        child = os.fork()
                        if child == 0:
                            raise LookupError("of the child")
                        _, status = os.waitpid(child, 0)
                        assert status == 0, status
                        group.send_nowait(client, b"the parent goes on")
                        await group.flush().wait_released()
                assert ring.statistics().sends == 2
                print("parent")
            except BaseException as exc:
                if child:
                    raise
                # An event loop does not work after fork, so anything may come here, but at once.
                os.write(1, b"child\\n")
                os._exit(0)
        """,
        anyio_backend,
        driver,
    )
    assert output.splitlines() == ["child", "parent"]


def test_a_ring_in_a_forked_child(driver: Any) -> None:
    output = run(
        """
        async def send(word):
            async with zc_anyio.open_ring(driver=sys.argv[1]):
                async with zc_anyio.send_group() as group:
                    await group.send(client, word)

        async def main():
            await send(b"parent ")

        anyio.run(main)
        child = os.fork()
        if child == 0:
            anyio.run(send, b"child ")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        anyio.run(send, b"parent")
        client.close()
        print(peer.recv(100))

        async def main():
            pass
        """,
        ("asyncio", {}),
        driver,
    )
    assert output == "b'parent child parent'\n"


@pytest.mark.anyio
async def test_exec_is_refused_while_sends_are_held(holding_driver: Any) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytearray(MIB))
                await until_held(ring, 1)
                for attempt in (
                    lambda: os.execv("/nonexistent", ["nonexistent"]),
                    lambda: os.execve("/nonexistent", ["nonexistent"], {}),
                    lambda: os.execvp("/nonexistent", ["nonexistent"]),
                ):
                    with pytest.raises(RuntimeError, match="would hang"):
                        attempt()
                # Starting a child process is allowed.
                assert subprocess.run(["/bin/true"], check=False).returncode == 0
                receive_exactly(peer, MIB)
            # With nothing held it fails for its own reason.
            with pytest.raises(FileNotFoundError):
                os.execv("/nonexistent", ["nonexistent"])


@pytest.mark.anyio
async def test_statistics_from_a_finished_ring_in_another_thread(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        pass
    seen: list[zc_anyio.RingStatistics] = []
    thread = threading.Thread(target=lambda: seen.append(ring.statistics()))
    thread.start()
    await until(lambda: seen)
    thread.join()
    assert seen[0].sends == 0
