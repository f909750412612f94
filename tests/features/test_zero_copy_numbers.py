"""MSG_ZEROCOPY numbers the sends of a socket without telling the numbers; a ring counts them.

When it cannot know the next number any more, the socket is sent to by copying.  Held sends are
still released, and not before the kernel has let go of them.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.features.receivers import Collector
from tests.support.needs import missing, need_command, why_not
from tests.support.netns import Rig
from tests.support.peers import receive_exactly, tcp_pair
from tests.support.waiting import LIMIT, until, until_held, until_idle

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

DRIVER = "msg_zerocopy"
IP_RECVERR = 11
IPV6_V6ONLY = 26
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
SO_TIMESTAMPNS, SO_TIMESTAMPING = 35, 37
TIMESTAMPING_SOFTWARE = 1 << 4
SIZE = 1_000
# Buffers are overwritten with this when their group has been left; nobody may receive it.
GONE = 255


@pytest.fixture(autouse=True)
def runs_here() -> None:
    if (reason := why_not(DRIVER)) is not None:
        missing(f"the driver {DRIVER} cannot run: {reason}")


def zero_copied(ring: zc_anyio.Ring) -> int:
    """Return how many requests were notified of, and so had a number."""
    counters = ring.statistics()
    return counters.completions - counters.requests


async def send(sock: socket.socket, *numbers: int) -> set[int]:
    """Send a datagram of each number, overwrite them when the group is left; return the errnos."""
    buffers = [bytearray([number]) * SIZE for number in numbers]
    with anyio.fail_after(LIMIT):
        async with zc_anyio.send_group(on_error="collect") as group:
            for buffer in buffers:
                await group.send(sock, buffer)
    for buffer in buffers:
        buffer[:] = bytes([GONE]) * SIZE
    return {failure.error.errno or 0 for failure in group.failures}


async def check_received(ring: zc_anyio.Ring, collector: Collector) -> None:
    """Each datagram that the kernel took has arrived as it was when it was sent."""
    counters = ring.statistics()
    await until(lambda: len(collector.received) >= counters.sends - counters.failed)
    assert len(collector.received) == counters.sends - counters.failed
    assert all(set(data) != {GONE} for data in collector.received)
    assert len({data[:1] * SIZE for data in collector.received}) == len(collector.received)
    assert all(data == data[:1] * SIZE for data in collector.received)


@contextmanager
def slow_path(namespaces: Rig, **queue: str) -> Iterator[tuple[socket.socket, Collector]]:
    """A UDP socket whose datagrams wait in a device, and what takes them at its end."""
    namespaces.shape("256kbit", **queue)
    with namespaces.datagrams() as (sender, receiver):
        with Collector(receiver) as collector:
            try:
                yield sender, collector
            finally:
                # This one reaches it by another path, without waiting.
                with namespaces.receiver.socket(kind=socket.SOCK_DGRAM) as last:
                    last.sendto(b"", receiver.getsockname())


def forced() -> Any:
    return zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0)


# --- failed sends


async def test_the_queue_of_a_device_is_full(namespaces: Rig) -> None:
    with slow_path(namespaces, burst="1600", limit="2500") as (sender, collector):
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        async with forced() as ring:
            # Some are in the queue when the next is refused; they are waited for.
            assert await send(sender, *range(20)) == {errno.ENOBUFS}
            before = zero_copied(ring)
            assert before > 0
            for number in range(20, 40):
                await send(sender, number)
            assert zero_copied(ring) == before
            await check_received(ring, collector)
        collector.received.clear()
        async with forced() as ring:
            # Nothing of the number is remembered.
            await until(lambda: select.select([], [sender], [], 0)[1])
            await send(sender, 40)
            assert zero_copied(ring) == 0


async def test_a_filter_refuses_datagrams(namespaces: Rig) -> None:
    nft = need_command("nft", "nftables")
    with slow_path(namespaces) as (sender, collector):
        port = sender.getpeername()[1]
        refuse = f"""table ip refuse {{
            chain outgoing {{
                type filter hook output priority 0
                udp dport {port} drop
            }}
        }}
        """
        async with forced() as ring, anyio.create_task_group() as tasks:
            # The burst that is let through at once is used up by those before.
            await send(sender, *range(150))
            # They take a third of a second to leave.
            tasks.start_soon(send, sender, *range(150, 160))
            await until(lambda: ring.statistics().held >= 2, "some are held")
            namespaces.sender.command(nft, "-f", "-", lines=refuse)
            assert await send(sender, 160, 161, 162) == {errno.EPERM}
            namespaces.sender.command(nft, "delete", "table", "ip", "refuse")
            before, held = zero_copied(ring), ring.statistics().held
            for number in range(163, 168):
                assert await send(sender, number) == set()
            await until_idle(ring)
            # Those that were held were notified of, and no other.
            assert zero_copied(ring) <= before + held
            assert ring.statistics().failed == 3
            await check_received(ring, collector)


async def test_no_room_in_the_socket_leaves_the_count_certain(namespaces: Rig) -> None:
    with slow_path(namespaces) as (sender, collector):
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with forced() as ring:
            await send(sender, *range(200))
            assert ring.statistics().requests > 200, "none had to wait for room"
            before = zero_copied(ring)
            await send(sender, 200)
            assert zero_copied(ring) > before
            await check_received(ring, collector)


async def test_no_room_for_notifications_leaves_the_count_certain(namespaces: Rig) -> None:
    def restrict() -> None:
        try:
            Path("/proc/sys/net/core/optmem_max").write_text("4096", encoding="ascii")
        except OSError as exc:
            missing(f"net.core.optmem_max cannot be set for a network namespace: {exc}")

    namespaces.sender.run(restrict)
    with slow_path(namespaces) as (sender, collector):
        async with forced() as ring:
            await send(sender, *range(200))
            counters = ring.statistics()
            assert counters.refused > 0
            assert counters.failed == 0
            before = zero_copied(ring)
            await send(sender, 200)
            await send(sender, *range(201, 250))
            assert zero_copied(ring) > before
            await check_received(ring, collector)


# --- others who send, or ask something of the socket


@contextmanager
def udp_pair(family: int = socket.AF_INET) -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(family, socket.SOCK_DGRAM) as peer,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        peer.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        peer.settimeout(LIMIT)
        client.connect(peer.getsockname())
        client.setblocking(False)
        yield client, peer


async def test_the_program_sends_between_the_ring_s_sends() -> None:
    with udp_pair() as (client, peer):
        async with forced() as ring:
            await send(client, 0)
            assert zero_copied(ring) == 1
            await until_idle(ring)
            for _ in range(3):
                client.send(b"by hand", MSG_ZEROCOPY)
            await until(lambda: [x for x in select_errors(client) if x])
            for number in (1, 2):
                await send(client, number)
            assert (zero_copied(ring), ring.statistics().requests) == (1, 3)
        assert [peer.recv(SIZE)[0] for _ in range(6)] == [0, *b"bbb", 1, 2]


def select_errors(sock: socket.socket) -> list[int]:
    """Return the events that a poll for nothing reports."""
    poll = select.poll()
    poll.register(sock, 0)
    return [events for _, events in poll.poll(0)]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
async def test_time_stamps_of_the_program(family: int) -> None:
    # They come in the same messages as the notifications.
    with udp_pair(family) as (client, _):
        client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TIMESTAMPING_SOFTWARE)
        async with forced() as ring:
            for number in range(3):
                await send(client, number)
            assert zero_copied(ring) == 3


async def test_a_peer_of_ipv4_on_a_socket_of_ipv6() -> None:
    with udp_pair() as (_, peer), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_V6ONLY, 0)
        client.connect((f"::ffff:{peer.getsockname()[0]}", peer.getsockname()[1]))
        client.setblocking(False)
        async with forced() as ring:
            for number in range(3):
                await send(client, number)
            assert zero_copied(ring) == 3
        assert [peer.recv(SIZE) for _ in range(3)] == [bytes([n]) * SIZE for n in range(3)]


# --- forked children

FORKED = """
    import os, socket, sys
    import anyio
    import zc_anyio

    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(peer.getsockname())
    client.setblocking(False)

    def ring():
        return zc_anyio.open_ring(driver="msg_zerocopy", zero_copy="always", threshold=0)

    async def send(ring, count):
        for _ in range(count):
            with anyio.fail_after(20):
                async with zc_anyio.send_group(ring=ring) as group:
                    await group.send(client, bytearray(1000))
        counters = ring.statistics()
        return counters.completions - counters.requests

    async def send_anew(count):
        async with ring() as opened:
            return await send(opened, count)

    def fork(function):
        child = os.fork()
        if child == 0:
            function()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def by_hand():
        for _ in range(3):
            assert client.send(bytes(1000), 0x4000000) == 1000
        for _ in range(3):
            try:
                client.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                pass

    def with_a_ring():
        assert run(send_anew, 3) == 0

    def run(function, *arguments):
        return anyio.run(function, *arguments, backend=BACKEND, backend_options=OPTIONS)
"""


def forked(script: str, backend: tuple[str, dict[str, Any]]) -> None:
    """Run a script that may fork, in a process of its own."""
    script = textwrap.dedent(FORKED) + textwrap.dedent(script)
    script = script.replace("BACKEND", repr(backend[0])).replace("OPTIONS", repr(backend[1]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("child", ["by_hand", "with_a_ring"])
def test_a_socket_that_a_forked_child_has_as_well(
    anyio_backend: tuple[str, dict[str, Any]], child: str
) -> None:
    forked(
        f"""
        assert run(send_anew, 2) == 2
        fork({child})
        assert run(send_anew, 2) == 0
        """,
        anyio_backend,
    )


@pytest.mark.parametrize("suspended", [False, True])
def test_a_socket_that_a_ring_has_when_the_process_forks(
    anyio_backend: tuple[str, dict[str, Any]], suspended: bool
) -> None:
    forked(
        f"""
        async def main():
            async with ring() as opened:
                assert await send(opened, 2) == 2
                if {suspended}:
                    await anyio.sleep(0.1)
                fork(by_hand)
                assert await send(opened, 2) == 2
                # What is made after that is not concerned.
                global client
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.connect(peer.getsockname())
                    client.setblocking(False)
                    assert await send(opened, 2) == 4
        run(main)
        """,
        anyio_backend,
    )


# The child ends at once, whatever threads the test tools have here.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_what_is_held_when_the_process_forks_is_released() -> None:
    with tcp_pair(stalled=True) as (client, peer):
        data = bytearray(os.urandom(1 << 20))
        expected = bytes(data)
        async with forced() as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                await until_held(ring, 1)
                child = os.fork()
                if child == 0:
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
                await group.send(client, b"behind it")
                held = ring.statistics().held
                received = await anyio.to_thread.run_sync(receive_exactly, peer, len(data) + 9)
            assert (held, zero_copied(ring)) == (1, 1)
        assert received == expected + b"behind it"
