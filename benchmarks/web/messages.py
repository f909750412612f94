"""Clients over WebSockets, made of plain sockets so that they take little time themselves."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.web.application import GREETING
from benchmarks.web.load import LIMIT_SECONDS, Load, Target, Wrong
from benchmarks.web.watch import Watch

__all__ = ["echoes", "to_all"]

SHAKE = (
    b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# Before it is measured.
WARMING_UP = 3


def echoes(target: Target, watch: Watch) -> Load:
    """Have messages sent back, one after the other on each connection.

    :raises Wrong: something else comes back.
    """
    with _connections(target) as (sockets, poll):
        text = "e" * target.content.size
        sent, wanted = _frame(text, masked=True), _frame(text)
        come = dict.fromkeys(sockets, b"")
        times = dict.fromkeys(sockets, 0.0)
        latencies: list[float] = []

        def exchange(until: float) -> None:
            """Go on until then, and wait for what is under way."""
            for number, sock in sockets.items():
                times[number] = time.perf_counter()
                sock.sendall(sent)
            waiting = len(sockets)
            while waiting:
                for number in _ready(poll):
                    come[number] += sockets[number].recv(len(wanted))
                    if len(come[number]) < len(wanted):
                        continue
                    if come[number] != wanted:
                        raise Wrong("another message came back")
                    now = time.perf_counter()
                    latencies.append(now - times[number])
                    come[number] = b""
                    if now < until:
                        times[number] = now
                        sockets[number].sendall(sent)
                    else:
                        waiting -= 1

        for _ in range(WARMING_UP):
            exchange(0.0)
        latencies.clear()
        with watch:
            exchange(time.perf_counter() + target.seconds)
    return _load(latencies, watch)


def to_all(target: Target, watch: Watch) -> Load:
    """Have one member's messages delivered to all, each when the one before it is.

    :raises Wrong: a member is sent something else.
    """
    with _connections(target) as (sockets, poll):
        greeting = _frame(GREETING)
        for sock in sockets.values():
            if _receive(sock, len(greeting)) != greeting:
                raise Wrong("a member is not welcome")
        text = "m" * target.content.size
        sent, wanted = _frame(text, masked=True), _frame(text)
        come = dict.fromkeys(sockets, b"")
        latencies: list[float] = []

        def deliver() -> None:
            begun, left = time.perf_counter(), len(sockets)
            next(iter(sockets.values())).sendall(sent)
            while left:
                for number in _ready(poll):
                    come[number] += sockets[number].recv(2 * len(wanted))
                    if len(come[number]) < len(wanted):
                        continue
                    if come[number] != wanted:
                        raise Wrong("a member was sent another message")
                    come[number] = b""
                    latencies.append(time.perf_counter() - begun)
                    left -= 1

        for _ in range(WARMING_UP):
            deliver()
        latencies.clear()
        with watch:
            until = time.perf_counter() + target.seconds
            while time.perf_counter() < until:
                deliver()
    return _load(latencies, watch)


def _load(latencies: list[float], watch: Watch) -> Load:
    latencies.sort()
    count = len(latencies)
    return Load(count, watch.seconds, (latencies[count // 2], latencies[count * 99 // 100]))


@contextmanager
def _connections(target: Target) -> Iterator[tuple[dict[int, socket.socket], select.epoll]]:
    sockets: dict[int, socket.socket] = {}
    try:
        with select.epoll() as poll:
            for _ in range(target.connections):
                sock = socket.create_connection(("127.0.0.1", target.port), LIMIT_SECONDS)
                sockets[sock.fileno()] = sock
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(SHAKE % target.path.encode())
                # What follows the head is for the one who asks next.
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += _receive(sock, 1)
                if not head.startswith(b"HTTP/1.1 101 "):
                    raise Wrong(f"{target.path} is answered {head!r}")
                poll.register(sock, select.EPOLLIN)
            yield sockets, poll
    finally:
        for sock in sockets.values():
            sock.close()


def _ready(poll: select.epoll) -> list[int]:
    events = poll.poll(LIMIT_SECONDS)
    if not events or any(event & (select.EPOLLHUP | select.EPOLLERR) for _, event in events):
        raise Wrong("a connection has ended, or nothing comes any more")
    return [number for number, _ in events]


def _receive(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = sock.recv(size - len(received))
        if not chunk:
            raise Wrong(f"the connection ended after {received!r}")
        received += chunk
    return received


def _frame(text: str, *, masked: bool = False) -> bytes:
    """Return a text of at most 65,535 bytes as a frame (RFC 6455, section 5.2)."""
    data, mask = text.encode(), os.urandom(4)
    flag = 0x80 if masked else 0
    if len(data) < 126:
        head = struct.pack("!BB", 0x81, flag | len(data))
    else:
        head = struct.pack("!BBH", 0x81, flag | 126, len(data))
    if not masked:
        return head + data
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
