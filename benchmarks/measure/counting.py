"""Counting what arrived: bytes that the peer acknowledged, datagrams that the sink was given.

A rate counts only with this check, since a send that never happened costs nothing.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

from benchmarks.lab.network import DEVICE

__all__ = ["Device", "Memory", "Miscount", "acknowledged"]

# struct tcp_info: tcpi_bytes_acked.
BYTES_ACKED_AT = 120
# What a datagram has in front of it: Ethernet, IP and UDP headers.
DATAGRAM_HEADERS = 14 + 20 + 8


class Miscount(Exception):  # noqa: N818 - as anyio's exceptions are named
    """The receiver's count differs from what the peer says it has sent."""

    def __init__(self, claimed: int, counted: int) -> None:
        super().__init__(f"{claimed} bytes were to be sent, and {counted} arrived")


def acknowledged(sock: socket.socket) -> int:
    """Bytes that the peer of a TCP connection has acknowledged, including one for the SYN."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED_AT + 8)
    count: int = struct.unpack_from("Q", info, BYTES_ACKED_AT)[0]
    return count


class Device:
    """The counters of the sink since this object was made."""

    def __init__(self) -> None:
        self._bytes, self._packets = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == DEVICE:
                # The sink counts what it is given to send as received.
                received = counters.split()
                return int(received[0]), int(received[1])
        raise OSError(f"there is no device {DEVICE}")

    def payload(self) -> int:
        """Bytes of datagrams, without their headers."""
        seen_bytes, seen_packets = self._read()
        return seen_bytes - self._bytes - (seen_packets - self._packets) * DATAGRAM_HEADERS


class Memory:
    """Memory of the machine that is taken, in bytes, since this object was made."""

    def __init__(self) -> None:
        self._available, self._sockets = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        with suppress(OSError):
            # The counters of each core are added up once a second, or when root asks for it.
            Path("/proc/sys/vm/stat_refresh").write_text("1")
        fields = dict(
            line.split(":")
            for line in Path("/proc/meminfo").read_text().splitlines()
            if ":" in line
        )
        available = int(fields["MemAvailable"].split()[0]) << 10
        [tcp] = [
            line
            for line in Path("/proc/net/sockstat").read_text().splitlines()
            if line.startswith("TCP:")
        ]
        pages = int(tcp.split()[-1])
        return available, pages * 4096

    def taken(self) -> tuple[int, int]:
        """Bytes by MemAvailable, and by the memory counter of TCP sockets."""
        available, sockets = self._read()
        return self._available - available, sockets - self._sockets
