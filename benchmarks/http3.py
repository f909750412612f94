"""CPU time of two servers that send a file over HTTP/3: `examples.quic`, and aioquic's for asyncio.

``python -m benchmarks.http3``: both run on asyncio, in processes of their own, in turns; aioquic's
own client asks both.  Most of the time goes into packets and their encryption, the same in both:
what calls into aioquic take is shown as a part of its own, and what is left is sending, receiving,
timers and the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import trustme
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

import zc_anyio
from examples.quic.files import Files
from examples.quic.server import Server
from examples.stream.folder import Folder

NAME = "file.bin"


class Theirs(QuicConnectionProtocol):
    """Serves one file, from memory."""

    content = b""
    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        """Answer each request."""
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is None:
            return
        for happened in self.http.handle_event(event):
            if isinstance(happened, HeadersReceived):
                self.http.send_headers(happened.stream_id, [(b":status", b"200")])
                self.http.send_data(happened.stream_id, self.content, end_stream=True)
                self.transmit()


class Asking(QuicConnectionProtocol):
    """Asks for the file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic)
        self.hashed = hashlib.sha256()
        self.ended = asyncio.Event()

    def ask(self) -> None:
        """Send the request."""
        fields = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", f"/{NAME}".encode()),
        ]
        stream_id = self._quic.get_next_available_stream_id()
        self._http.send_headers(stream_id, fields, end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        """Hash what comes."""
        for happened in self._http.handle_event(event):
            if isinstance(happened, DataReceived):
                self.hashed.update(happened.data)
                if happened.stream_ended:
                    self.ended.set()


class Counted:
    """CPU time that methods of a class take."""

    seconds = 0.0

    def count(self, kind: type, *names: str) -> None:
        """Count these methods from now on."""
        for name in names:
            setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return counted


async def run_server(kind: str, folder: Path) -> None:
    """Serve until standard input ends; print the port, and at the end the CPU times."""
    inside = Counted()
    inside.count(
        QuicConnection, "datagrams_to_send", "receive_datagram", "handle_timer", "get_timer"
    )
    inside.count(H3Connection, "send_data")
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, is_client=False)
    configuration.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    if kind == "theirs":
        Theirs.content = (folder / NAME).read_bytes()
        server = await serve(
            "127.0.0.1", 0, configuration=configuration, create_protocol=Theirs, retry=True
        )
        transport = cast(Any, server)._transport
        print(transport.get_extra_info("sockname")[1], flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        server.close()
    else:
        async with (
            zc_anyio.open_ring(),
            await zc_anyio.create_udp_socket(local_host="127.0.0.1") as sock,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(Server(configuration, Files(Folder(folder))).serve, sock)
            print(sock.extra(anyio.abc.SocketAttribute.local_port), flush=True)
            await anyio.to_thread.run_sync(sys.stdin.read)
            tasks.cancel_scope.cancel()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, inside.seconds, flush=True)


async def ask(port: int, authority: bytes) -> tuple[float, bytes]:
    """Return how many seconds the file took, and its hash."""
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN,
        server_name="localhost",
        max_data=16 << 20,
        max_stream_data=16 << 20,
    )
    configuration.load_verify_locations(cadata=authority)
    async with connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=Asking
    ) as protocol:
        client = cast(Asking, protocol)
        start = time.perf_counter()
        client.ask()
        await client.ended.wait()
        return time.perf_counter() - start, client.hashed.digest()


def measure(kind: str, folder: Path, authority: bytes) -> tuple[float, float, float]:
    """Return the server's CPU time, that in aioquic, and how long the client waited."""
    command = [sys.executable, "-m", "benchmarks.http3", f"--serve={kind}", f"--folder={folder}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        seconds, digest = asyncio.run(ask(port, authority))
        server.stdin.close()
        cpu, inside = map(float, server.stdout.readline().split())
    if digest != hashlib.sha256((folder / NAME).read_bytes()).digest():
        raise RuntimeError("what arrived is not the file")
    return cpu, inside, seconds


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=32, help="size of the file (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        anyio.run(run_server, options.serve, options.folder)
        return
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    results: dict[str, list[tuple[float, float, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made.private_key_pem.write_to_path(str(folder / "key.pem"))
        made.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
        # What starting and connecting take is measured with one byte, and taken off.
        idle: dict[str, tuple[float, ...]] = {}
        for mib in (0, options.mib):
            (folder / NAME).write_bytes(os.urandom(mib << 20 or 1))
            for values in results.values():
                values.clear()
            for _ in range(options.rounds):
                for kind, values in results.items():
                    values.append(measure(kind, folder, authority.cert_pem.bytes()))
            if not mib:
                idle = {kind: medians(values) for kind, values in results.items()}
    for kind, values in results.items():
        each = sorted((cpu - idle[kind][0]) / options.mib * 1000 for cpu, _, _ in values)
        _, inside, seconds = medians(values)
        inside = (inside - idle[kind][1]) / options.mib * 1000
        print(
            f"{kind:7} {statistics.median(each):6.2f} ms of CPU time a MiB "
            f"({each[0]:.2f} to {each[-1]:.2f}), {inside:6.2f} of them in aioquic, "
            f"{options.mib / seconds:6.1f} MiB/s"
        )


def medians(values: list[tuple[float, float, float]]) -> tuple[float, ...]:
    """Return the median of each column."""
    return tuple(map(statistics.median, zip(*values, strict=True)))


if __name__ == "__main__":
    main()
