"""Sending to see what it costs: a probe over loopback, and copying against zero copy to a peer."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

import anyio
from anyio.abc import SocketStream

from .._base.errors import DriverUnavailable
from .._ring.opening import Driver, open_ring
from .._ring.ring import Ring, ZeroCopy
from .._sending.groups import send_group
from .._sending.pools import open_buffer_pool

__all__ = ["Loopback", "Measured", "Measurement", "MeasurementFailed", "measure", "try_loopback"]

PROBE_BYTES = 64 << 10
PROBE_SECONDS = 5.0
# Memory that a ring had pinned still counts against the limit for a moment after it is closed.
AGAIN_SECONDS = 0.2

SIZES = (64 << 10, 1 << 20)
POLICIES: tuple[ZeroCopy, ...] = ("never", "always")
ROUNDS = 5
# More than a socket buffers, so that it never runs dry; small enough to be released soon.
WINDOW = 8 << 20
CONNECT_SECONDS = 10.0
# A peer that takes less than a window in this time is given up.
STALLED_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Loopback:
    """What became of one zero-copy send over loopback.

    :ivar zero_copied: the kernel reported it as not copied.
    :ivar copied: it was copied; loopback copies even a send that it took as zero-copy.
    :ivar refused: the kernel refused it as a zero-copy send, and it was sent again by copying.
    :ivar unregistered: why a buffer could not be registered, or ``None`` if it could.
    :ivar error: why nothing was sent, or ``None``.
    """

    bytes: int
    zero_copied: bool
    copied: bool
    refused: bool
    unregistered: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds with one size of buffer and one policy.

    :ivar zero_copy: the policy, ``"never"`` or ``"always"``.
    :ivar sends: how many; of these the kernel reported ``zero_copied`` and ``copied``.
    :ivar seconds: from the first send of each round until the peer had acknowledged its last.
    :ivar cpu_seconds: of this process, in user space and in the kernel.
    """

    buffer_size: int
    zero_copy: ZeroCopy
    sends: int
    bytes: int
    seconds: float
    cpu_seconds: float
    zero_copied: int
    copied: int

    @property
    def bytes_per_second(self) -> float:
        """The rate at which bytes were acknowledged."""
        return self.bytes / self.seconds

    @property
    def cpu_seconds_per_gigabyte(self) -> float:
        """The CPU time of this process for each 10**9 bytes."""
        return self.cpu_seconds / (self.bytes / 1e9)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Copying against zero copy to one peer."""

    host: str
    port: int
    driver: str
    results: tuple[Measured, ...]


class MeasurementFailed(Exception):  # noqa: N818 - as anyio's exceptions are named
    """The measurement could not be made; the message says why."""


async def try_loopback(driver: Driver) -> Loopback:
    """Send one buffer over loopback by a driver that runs, and see what the kernel did with it."""
    loopback = await _try_loopback(driver)
    if loopback.refused:
        await anyio.sleep(AGAIN_SECONDS)
        return await _try_loopback(driver)
    return loopback


async def _try_loopback(driver: Driver) -> Loopback:
    try:
        with anyio.fail_after(PROBE_SECONDS), _loopback_pair() as (sender, receiver):
            # No staging memory: it would count against the limit as well.
            async with open_ring(driver=driver, zero_copy="always", staging=0) as ring:
                async with open_buffer_pool(buffer_size=PROBE_BYTES, count=1) as pool:
                    unregistered = pool.unregistered
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_receive, receiver, PROBE_BYTES)
                    async with send_group(zero_copy="always") as group:
                        await group.send(sender, bytes(PROBE_BYTES))
                counters = ring.statistics()
    except TimeoutError:
        return _untried(f"it took longer than {PROBE_SECONDS:.0f} s")
    except (OSError, DriverUnavailable, anyio.BrokenResourceError, ExceptionGroup) as exc:
        return _untried(_reason(exc))
    return Loopback(
        bytes=PROBE_BYTES,
        zero_copied=counters.zero_copied > 0,
        copied=counters.copied > 0,
        # All of it fits the socket, so only a refusal needs a second request.
        refused=driver != "copy" and counters.requests > counters.sends,
        unregistered=unregistered,
        error=None,
    )


def _untried(error: str) -> Loopback:
    return Loopback(
        bytes=PROBE_BYTES,
        zero_copied=False,
        copied=False,
        refused=False,
        unregistered=None,
        error=error,
    )


@contextmanager
def _loopback_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * PROBE_BYTES)
        sender.connect(server.getsockname())
        receiver, _ = server.accept()
        with receiver:
            sender.setblocking(False)
            receiver.setblocking(False)
            yield sender, receiver


async def _receive(sock: socket.socket, size: int) -> None:
    while size > 0:
        await anyio.wait_readable(sock)
        received = len(sock.recv(size))
        if not received:
            raise ConnectionError("the connection over loopback ended early")
        size -= received


async def measure(host: str, port: int, *, seconds: float) -> Measurement:
    """Measure copying against zero copy to a TCP peer that discards what it gets.

    Rounds of both policies alternate on one connection, so that both meet the same network.

    :param seconds: how long all rounds take together.
    :raises MeasurementFailed: the peer cannot be reached, or does not take what is sent.
    """
    try:
        with anyio.fail_after(CONNECT_SECONDS):
            stream = await anyio.connect_tcp(host, port)
    except TimeoutError:
        raise MeasurementFailed(f"did not answer within {CONNECT_SECONDS:.0f} s") from None
    except OSError as exc:
        raise MeasurementFailed(f"cannot be connected to: {_reason(exc)}") from exc
    each = seconds / (ROUNDS * len(SIZES) * len(POLICIES))
    rounds: dict[tuple[int, ZeroCopy], list[Measured]] = {
        (size, policy): [] for size in SIZES for policy in POLICIES
    }
    # Not zeros, which could all be one page; and bytes, so that giving up a stalled peer need not
    # wait for their release.
    data = {size: os.urandom(size) for size in SIZES}
    async with stream, open_ring(drain_timeout=1.0) as ring:
        # Not counted: congestion control is still finding its pace.
        await _round(ring, stream, data[SIZES[-1]], "never", each)
        for number in range(ROUNDS):
            for size in SIZES:
                # The order changes, so that neither policy always comes second.
                for policy in POLICIES if number % 2 == 0 else reversed(POLICIES):
                    measured = await _round(ring, stream, data[size], policy, each)
                    rounds[size, policy].append(measured)
        driver = ring.capabilities.driver
    return Measurement(host, port, driver, tuple(_sum(parts) for parts in rounds.values()))


async def _round(
    ring: Ring, stream: SocketStream, data: bytes, policy: ZeroCopy, seconds: float
) -> Measured:
    before = ring.statistics()
    cpu, start = process_time(), perf_counter()
    try:
        with anyio.move_on_after(math.inf) as stalled:
            async with send_group(ring=ring, zero_copy=policy, window=WINDOW) as group:
                sending = True
                while sending:
                    stalled.deadline = anyio.current_time() + STALLED_SECONDS
                    await group.send(stream, data)
                    sending = perf_counter() - start < seconds
    except (anyio.BrokenResourceError, ExceptionGroup) as exc:
        raise MeasurementFailed(f"broke the connection: {_reason(exc)}") from exc
    if stalled.cancelled_caught:
        raise MeasurementFailed(f"did not take what was sent within {STALLED_SECONDS:.0f} s")
    elapsed, cpu = perf_counter() - start, process_time() - cpu
    after = ring.statistics()
    return Measured(
        buffer_size=len(data),
        zero_copy=policy,
        sends=after.sends - before.sends,
        bytes=after.bytes_sent - before.bytes_sent,
        seconds=elapsed,
        cpu_seconds=cpu,
        zero_copied=after.zero_copied - before.zero_copied,
        copied=after.copied - before.copied,
    )


def _sum(parts: list[Measured]) -> Measured:
    return Measured(
        buffer_size=parts[0].buffer_size,
        zero_copy=parts[0].zero_copy,
        sends=sum(part.sends for part in parts),
        bytes=sum(part.bytes for part in parts),
        seconds=sum(part.seconds for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
        zero_copied=sum(part.zero_copied for part in parts),
        copied=sum(part.copied for part in parts),
    )


def _reason(exc: BaseException) -> str:
    """Return the message of an exception's root cause."""
    if isinstance(exc, BaseExceptionGroup):
        return _reason(exc.exceptions[0])
    if isinstance(exc.__cause__, BaseException):
        return _reason(exc.__cause__)
    return str(exc) or type(exc).__name__
