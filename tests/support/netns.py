"""Two network namespaces joined by a veth pair with a queue that holds packets for long.

Loopback delivers a packet while it is sent, and copies zero-copy data on the way.  Here the packets
wait in a token bucket first, with the sender's pages in them.  So if a buffer is released too
early, what is written into it then is sent.

The namespaces have no names: they exist for as long as a thread, a descriptor or a socket is in
them, so nothing can be left behind, however the process ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

from tests.support.needs import missing, need_command, need_root
from tests.support.peers import LARGE_BUFFER
from tests.support.waiting import LIMIT

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SENDER, RECEIVER, SINK = "10.77.0.1", "10.77.0.2", "10.77.1.1"
SENDER_6, RECEIVER_6 = "fd77::1", "fd77::2"
# Known from the start: what waits for neighbour discovery is dropped from a number on.
RECEIVER_MAC = "02:00:00:00:77:02"


class Namespace:
    """A network namespace, and the one thread that lives in it."""

    def __init__(self, stack: ExitStack) -> None:
        self._thread = ThreadPoolExecutor(1, "namespace")
        stack.callback(self._thread.shutdown)
        self.path = self.run(self._enter)

    @staticmethod
    def _enter() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"

    def run(self, function: Callable[[], T]) -> T:
        """Call a function inside."""
        return self._thread.submit(function).result(LIMIT)

    def command(self, *words: str, lines: str = "") -> None:
        """Run a command inside; a child process is in the namespace of the thread that made it."""

        def run() -> None:
            done = subprocess.run(words, input=lines, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")

        self.run(run)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket that stays in the namespace, wherever it is used."""
        return self.run(lambda: socket.socket(family, kind))


class Rig:
    """Where packets wait: ``sender`` -> veth with a token bucket -> ``receiver``.

    The sending namespace also has a sink, a device that drops every packet unread.
    """

    def __init__(self, stack: ExitStack, rate: str) -> None:
        ip = need_command("ip", "iproute2")
        self.sender = Namespace(stack)
        self.receiver = Namespace(stack)
        self.sender.command(
            ip,
            "-batch",
            "-",
            lines=f"""
            link set lo up
            link add out type veth peer name in address {RECEIVER_MAC} netns {self.receiver.path}
            address add {SENDER}/24 dev out
            address add {SENDER_6}/64 dev out nodad
            link set out up
            neighbour add {RECEIVER_6} dev out lladdr {RECEIVER_MAC}
            link add sink type ifb
            address add 10.77.1.2/24 dev sink
            link set sink mtu 65535 up
            """,
        )
        self.receiver.command(
            ip,
            "-batch",
            "-",
            lines=f"""
            link set lo up
            address add {RECEIVER}/24 dev in
            address add {RECEIVER_6}/64 dev in nodad
            link set in up
            """,
        )
        self.shape(rate)

    def shape(self, rate: str, *, burst: str = "128k", limit: str = "16m") -> None:
        """Have packets to the receiver wait in a queue of ``limit`` bytes.

        The ``burst`` lets a packet of the largest size through in one piece.
        """
        tc = need_command("tc", "iproute2")
        bucket = f"tbf rate {rate} burst {burst} limit {limit}".split()
        self.sender.command(tc, "qdisc", "replace", "dev", "out", "root", *bucket)

    @contextmanager
    def connection(
        self, *, receive_buffer: int | None = None
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Connect the two namespaces: the sending socket, and its peer."""
        with self.receiver.socket() as server, self.sender.socket() as client:
            if receive_buffer is not None:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            server.bind((RECEIVER, 0))
            server.listen()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE_BUFFER)
            client.settimeout(LIMIT)
            client.connect(server.getsockname())
            client.setblocking(False)
            peer, _ = server.accept()
            peer.settimeout(LIMIT)
            with peer:
                yield client, peer

    @contextmanager
    def datagrams(
        self, family: int = socket.AF_INET
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Make a connected UDP socket, and the one in the other namespace that receives from it."""
        with (
            self.receiver.socket(family, socket.SOCK_DGRAM) as receiver,
            self.sender.socket(family, socket.SOCK_DGRAM) as sender,
        ):
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGE_BUFFER)
            receiver.bind((RECEIVER if family == socket.AF_INET else RECEIVER_6, 0))
            receiver.settimeout(LIMIT)
            sender.setblocking(False)
            sender.connect(receiver.getsockname())
            if family == socket.AF_INET6:
                _until_arrives(sender, receiver)
            yield sender, receiver

    def to_sink(self) -> socket.socket:
        """Return a UDP socket that is connected to the sink."""
        sock = self.sender.socket(kind=socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((SINK, 9))
        return sock


def _until_arrives(sender: socket.socket, receiver: socket.socket) -> None:
    """Wait for IPv6, which drops what comes before it has noticed that the device is up."""
    end = time.monotonic() + LIMIT
    receiver.settimeout(0.05)
    while True:
        sender.send(b"probe")
        with suppress(TimeoutError):
            receiver.recv(16)
            break
        assert time.monotonic() < end, "IPv6 is not up"
    receiver.settimeout(LIMIT)


@contextmanager
def rig(rate: str = "100mbit") -> Iterator[Rig]:
    """Make a :class:`Rig` of its own for the length of a scope; skip where that is not possible."""
    need_root("making network namespaces")
    with ExitStack() as stack:
        try:
            made = Rig(stack, rate)
        except OSError as exc:
            missing(f"network namespaces with veth, tbf and ifb cannot be made: {exc}")
        yield made
