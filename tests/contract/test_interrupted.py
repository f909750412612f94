"""A scope that was left has released its buffers, whatever interrupted its waits.

On asyncio an exception is thrown into the suspended coroutine; trio accepts only its own, so there
Ctrl-C is pressed while the main task is suspended.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import anyio
import pytest
import trio

import zc_anyio
from tests.support.peers import parked_pair, udp_pair
from zc_anyio import lowlevel

MIB = 1 << 20
# By when a scope has to be left, or the peer reads so that it can be.
READS_AFTER = 0.2


class Thrower:
    """Throws into a coroutine where it is suspended, from the n-th time after arming on."""

    def __init__(self, error: type[BaseException], first: int, times: int) -> None:
        self.error = error
        self.first, self.left = first, times
        self.armed = False
        self.seen = self.thrown = 0

    def is_due(self) -> bool:
        self.seen += self.armed
        if not self.armed or self.seen < self.first or not self.left:
            return False
        self.left -= 1
        self.thrown += 1
        return True

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Await an asyncio coroutine."""
        raised: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(None) if raised is None else coroutine.throw(raised)
                while self.is_due():
                    waits_for = coroutine.throw(self.error("thrown in"))
            except StopIteration:
                return
            raised = None
            try:
                yield waits_for
            except BaseException as exc:
                raised = exc


class CtrlC(trio.abc.Instrument):
    """Presses Ctrl-C where trio's main task is suspended."""

    def __init__(self, thrower: Thrower) -> None:
        self.thrower = thrower
        self.main: trio.lowlevel.Task | None = None

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.name == f"{run.__module__}.{run.__qualname__}.<locals>.main":
            self.main = task

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.main and self.thrower.is_due():
            signal.raise_signal(signal.SIGINT)


def run(backend: str, thrower: Thrower, scenario: Callable[[Thrower], Awaitable[None]]) -> bool:
    """Run a scenario, which has to raise what was thrown; return whether it was interrupted."""

    async def main() -> None:
        await scenario(thrower)

    raised: BaseException | None = None
    try:
        if backend == "trio":
            # A shell makes its background jobs ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            trio.run(main, instruments=[CtrlC(thrower)])
        else:
            with asyncio.Runner(loop_factory=loops[backend]) as runner:
                runner.run(main())
    except BaseException as exc:
        raised = exc
    while isinstance(raised, BaseExceptionGroup):
        (raised,) = raised.exceptions
    if thrower.thrown and thrower.error is not GeneratorExit:
        assert isinstance(raised, thrower.error)
    elif raised is not None:
        raise raised
    return bool(thrower.thrown)


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": new_uvloop,
}


class Peer:
    """Reads nothing for a while, and then everything: a scope that waits is left then."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timer = threading.Timer(READS_AFTER, self._read)
        self._timer.start()

    def _read(self) -> None:
        try:
            while self._sock.recv(MIB):
                pass
        except OSError:
            pass

    def end(self) -> None:
        self._timer.cancel()
        with suppress(OSError):  # reset already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._timer.join()


async def leaves_a_group(ring: zc_anyio.Ring, client: Any, thrower: Thrower) -> None:
    buffer = bytearray(8 * MIB)
    try:
        async with zc_anyio.send_group(window=64 * MIB) as group:
            await group.send(client, buffer)
            thrower.armed = True
    finally:
        assert not ring.statistics().held
        buffer.append(1)


async def waits_for_the_window(ring: zc_anyio.Ring, client: Any, thrower: Thrower) -> None:
    buffer = bytearray(8 * MIB)
    try:
        async with zc_anyio.send_group(window=MIB) as group:
            await group.send(client, buffer)
            thrower.armed = True
            await group.send(client, buffer)
    finally:
        assert not ring.statistics().held
        buffer.append(1)


async def sends_on_a_stream(ring: zc_anyio.Ring, client: Any, thrower: Thrower) -> None:
    buffer = bytearray(8 * MIB)
    stream = await zc_anyio.wrap_stream(
        await anyio.abc.SocketStream.from_socket(client.dup()), ring=ring
    )
    async with stream:
        thrower.armed = True
        try:
            await stream.send(buffer)
        finally:
            thrower.armed = False
            buffer.append(1)


async def ends_contexts(ring: zc_anyio.Ring, client: Any, thrower: Thrower) -> None:
    """Contexts by hand leave what is held to the ring, which keeps it locked until its release."""
    buffer = bytearray(8 * MIB)
    (context,) = lowlevel.register_tx_contexts(ring, [1], window=64 * MIB)
    notifications = context.notifications
    await context.send(client, buffer)
    thrower.armed = True
    try:
        await lowlevel.unregister_tx_contexts(ring)
    except BaseException:
        with pytest.raises(BufferError):
            buffer.append(1)
        raise
    else:
        buffer.append(1)
    finally:
        thrower.armed = False
        notifications.close()


async def ends_a_ring(ring: zc_anyio.Ring, client: Any, thrower: Thrower) -> None:
    with anyio.move_on_after(0):
        async with zc_anyio.send_group(ring=ring) as group:
            await group.send(client, bytes(2 * MIB))
    thrower.armed = True


async def sends_datagrams(ring: zc_anyio.Ring, _: Any, thrower: Thrower) -> None:
    """Only the peer makes the kernel release a datagram, so leaving waits for that."""
    buffer = bytearray(b"d" * 40_000)
    with udp_pair() as (own, peer):
        reads = threading.Timer(READS_AFTER, peer.recv, [1])
        reads.start()
        try:
            async with zc_anyio.send_group(ring=ring, zero_copy="always") as group:
                await group.send(own, buffer)
                thrower.armed = True
        finally:
            thrower.armed = False
            assert not ring.statistics().held
            buffer.append(1)
            reads.join()


SCENARIOS = [
    leaves_a_group,
    sends_datagrams,
    waits_for_the_window,
    sends_on_a_stream,
    ends_contexts,
    ends_a_ring,
]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("backend", "error"),
    [
        ("asyncio", KeyboardInterrupt),
        ("asyncio", RuntimeError),
        ("asyncio", SystemExit),
        ("asyncio", GeneratorExit),
        ("uvloop", KeyboardInterrupt),
        ("uvloop", SystemExit),
        ("uvloop", GeneratorExit),
        ("trio", KeyboardInterrupt),
    ],
)
def test_interrupted_at_each_wait(
    driver: Any, backend: str, error: type[BaseException], scenario: Any, times: int
) -> None:
    if error is GeneratorExit and (times > 1 or scenario is ends_a_ring):
        pytest.skip("a coroutine is closed once, and a task group cannot be left by that")
    interrupted = 0
    for first in range(1, 30):
        thrower = Thrower(error, first, times)
        with parked_pair() as (client, sock):
            peer = Peer(sock)

            async def main(thrower: Thrower, client: Any = client) -> None:
                async with zc_anyio.open_ring(driver=driver, drain_timeout=0.2) as ring:
                    coroutine = scenario(ring, client, thrower)
                    if backend == "trio" or scenario is ends_a_ring:
                        await coroutine
                    else:
                        try:
                            await thrower.drive(coroutine)
                        except GeneratorExit:
                            # It has been closed; this one, which is not, can still await.
                            assert error is GeneratorExit

            async def ends(thrower: Thrower) -> None:
                if backend == "trio" or scenario is not ends_a_ring:
                    await main(thrower)
                else:
                    await thrower.drive(main(thrower))

            try:
                if not run(backend, thrower, ends):
                    break
                interrupted += 1
            finally:
                peer.end()
    assert interrupted >= 1


@types.coroutine
def park() -> Generator[object, None, None]:
    yield park


@pytest.mark.anyio
async def test_a_coroutine_that_is_closed_within_a_group(driver: Any) -> None:
    """It cannot await anything, so what it holds is released before it is closed."""
    buffer = bytearray(8 * MIB)
    unchangeable = bytes(MIB)

    async def sends() -> None:
        async with zc_anyio.send_group(window=64 * MIB) as group:
            group.send_nowait(client, buffer)
            group.send_nowait(client, unchangeable)
            await park()

    with parked_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver, drain_timeout=0) as ring:
            coroutine = sends()
            assert coroutine.send(None) is park
            coroutine.close()
            assert not ring.statistics().held
            buffer.append(1)


@pytest.mark.anyio
async def test_an_asynchronous_generator_that_is_closed_within_a_group(driver: Any) -> None:
    buffer = bytearray(8 * MIB)

    async def sends() -> AsyncGenerator[int, None]:
        async with zc_anyio.send_group(window=64 * MIB) as group:
            group.send_nowait(client, buffer)
            yield 1

    with parked_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver, drain_timeout=0):
            generator = sends()
            async for _ in generator:
                break
            await generator.aclose()
            buffer.append(1)
