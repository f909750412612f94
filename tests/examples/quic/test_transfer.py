"""Files over HTTP/3: our server and client, and those of aioquic for asyncio."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import trustme
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio import connect as their_connect
from aioquic.asyncio import serve as their_serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

import zc_anyio
from examples.quic.client import connect
from examples.quic.files import Files
from examples.quic.server import Limits, Server
from examples.stream.folder import Folder
from tests.support.backends import only_asyncio

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SIZE = 3 << 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "large.bin").write_bytes(os.urandom(SIZE))
    (made / "empty.txt").touch()
    (tmp_path / "secret.txt").write_text("secret")
    (made / "out.txt").symlink_to(tmp_path / "secret.txt")
    return made


def for_server(authority: trustme.CA) -> QuicConfiguration:
    made = authority.issue_cert("localhost", "127.0.0.1", "::1")
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, is_client=False)
    with made.private_key_pem.tempfile() as key, made.cert_chain_pems[0].tempfile() as chain:
        configuration.load_cert_chain(chain, key)
    return configuration


def for_client(authority: trustme.CA) -> QuicConfiguration:
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN, is_client=True, server_name="localhost"
    )
    configuration.load_verify_locations(cadata=authority.cert_pem.bytes())
    return configuration


@asynccontextmanager
async def served(
    authority: trustme.CA, folder: Path, host: str = "127.0.0.1", **limits: int
) -> AsyncIterator[tuple[Server, int]]:
    server = Server(for_server(authority), Files(Folder(folder)), Limits(**limits))
    async with await zc_anyio.create_udp_socket(local_host=host) as sock:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, sock)
            yield server, sock.extra(anyio.abc.SocketAttribute.local_port)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_file_leaves_and_arrives_in_trains(
    driver: str, authority: trustme.CA, folder: Path, host: str
) -> None:
    hashed = hashlib.sha256()
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with (
            served(authority, folder, host) as (server, port),
            connect(host, port, for_client(authority)) as client,
        ):
            response = await client.get("/large.bin", hashed.update)
            assert (response.status, response.size) == (200, SIZE)
        statistics = ring.statistics()
        trains = ring.capabilities.sends_trains
    assert hashed.digest() == hashlib.sha256((folder / "large.bin").read_bytes()).digest()
    assert server.figures.sent >= SIZE / 1200
    assert server.figures.sent >= 2 * server.figures.calls
    if trains:
        # Small trains wait for no request, and the kernel kept together what went together.
        assert statistics.requests < (server.figures.sent + client.figures.sent) / 20
        assert client.figures.received >= 2 * client.figures.pieces


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/empty.txt", 200),
        ("HEAD", "/large.bin", 200),
        ("POST", "/large.bin", 405),
        ("GET", "/missing", 404),
        ("GET", "/../secret.txt", 400),
        ("GET", "/%2e%2e/secret.txt", 400),
        ("GET", "/out.txt", 403),
        ("GET", "/a%00b", 400),
        ("GET", "//etc/passwd", 404),
    ],
)
async def test_answers_without_a_body(
    authority: trustme.CA, folder: Path, method: str, path: str, status: int
) -> None:
    got: list[bytes] = []
    async with (
        zc_anyio.open_ring(driver="copy"),
        served(authority, folder) as (_, port),
        connect("127.0.0.1", port, for_client(authority)) as client,
    ):
        response = await client.get(path, got.append, method=method)
        assert (response.status, got) == (status, [])


async def test_more_connections_than_the_limit_get_no_answer(
    authority: trustme.CA, folder: Path
) -> None:
    async with (
        zc_anyio.open_ring(driver="copy"),
        served(authority, folder, connections=1) as (server, port),
    ):
        async with connect("127.0.0.1", port, for_client(authority)) as first:
            with anyio.move_on_after(0.5) as scope:
                async with connect("127.0.0.1", port, for_client(authority)):
                    pass
            assert scope.cancelled_caught
            assert len(server.links) == 1
            assert (await first.get("/empty.txt", bytes)).status == 200


async def test_no_state_is_kept_for_an_address_that_is_not_proven(
    authority: trustme.CA, folder: Path
) -> None:
    async with (
        zc_anyio.open_ring(driver="copy"),
        served(authority, folder) as (server, port),
        await zc_anyio.create_connected_udp_socket("127.0.0.1", port) as sock,
    ):
        from aioquic.quic.connection import QuicConnection

        quic = QuicConnection(configuration=for_client(authority))
        quic.connect(("127.0.0.1", port), now=0)
        first = quic.datagrams_to_send(now=0)[0][0]
        await sock.send(first)
        answer = await sock.receive()
        assert len(answer) < len(first)
        # A long header of the type Retry, RFC 9000, section 17.2.5.
        assert answer[0] & 0xF0 == 0xF0
        assert not server.links
        for nonsense in (b"", b"\0", os.urandom(1200), b"\xff" * 1500, first[:100]):
            await sock.send(nonsense)
        await sock.send(first)
        assert (await sock.receive())[0] & 0x80
        assert not server.links


class TheirClient(QuicConnectionProtocol):
    """aioquic's protocol for asyncio, with HTTP/3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.hashed = hashlib.sha256()
        self.status = b""
        self.ended = asyncio.Event()

    def ask(self, path: bytes) -> None:
        fields = {
            b":method": b"GET",
            b":scheme": b"https",
            b":authority": b"localhost",
            b":path": path,
        }
        stream_id = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream_id, list(fields.items()), end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        for happened in self.http.handle_event(event):
            if isinstance(happened, HeadersReceived):
                self.status = dict(happened.headers)[b":status"]
            elif isinstance(happened, DataReceived):
                self.hashed.update(happened.data)
            if getattr(happened, "stream_ended", False):
                self.ended.set()


@only_asyncio
async def test_their_client_understands_our_server(
    driver: str, authority: trustme.CA, folder: Path
) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        served(authority, folder) as (server, port),
        their_connect(
            "127.0.0.1", port, configuration=for_client(authority), create_protocol=TheirClient
        ) as protocol,
    ):
        client = cast(TheirClient, protocol)
        client.ask(b"/large.bin")
        await client.ended.wait()
        assert client.status == b"200"
        assert (
            client.hashed.digest() == hashlib.sha256((folder / "large.bin").read_bytes()).digest()
        )
        assert server.figures.sent >= 2 * server.figures.calls


@only_asyncio
async def test_what_one_peer_breaks_is_its_own_connection(
    authority: trustme.CA, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        zc_anyio.open_ring(driver="copy"),
        served(authority, folder) as (server, port),
        connect("127.0.0.1", port, for_client(authority)) as other,
    ):
        async with their_connect(
            "127.0.0.1", port, configuration=for_client(authority), create_protocol=TheirClient
        ) as protocol:
            client = cast(TheirClient, protocol)
            quic = client._quic
            # A trailer does not ask again.
            first = quic.get_next_available_stream_id()
            fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost")]
            client.http.send_headers(first, [*fields, (b":path", b"/empty.txt")])
            client.http.send_headers(first, [(b"trailer", b"1")], end_stream=True)
            client.transmit()
            await client.ended.wait()
            assert client.status == b"200"
            assert len(server.links) == 2
            # Nobody may write to a stream that the peer has stopped.
            second = quic.get_next_available_stream_id()
            quic.send_stream_data(second, b"")
            quic.stop_stream(second, 0)
            client.http.send_headers(second, [*fields, (b":path", b"/large.bin")], end_stream=True)
            client.transmit()
            while not caplog.records and len(server.links) == 2:
                await anyio.sleep(0.01)
                if (await other.get("/empty.txt", bytes)).status != 200:
                    break
            quic.close()
        assert (await other.get("/empty.txt", bytes)).status == 200


@only_asyncio
async def test_a_stream_that_is_too_long_ends_the_connection(
    authority: trustme.CA, folder: Path
) -> None:
    async with (
        zc_anyio.open_ring(driver="copy"),
        served(authority, folder, stream_bytes=1000) as (server, port),
        their_connect(
            "127.0.0.1", port, configuration=for_client(authority), create_protocol=TheirClient
        ) as protocol,
    ):
        protocol._quic.send_stream_data(0, bytes(5000))
        protocol.transmit()
        await protocol.wait_closed()
        while server.links:
            await anyio.sleep(0.01)


class TheirServer(QuicConnectionProtocol):
    content = b""
    http: H3Connection

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if not hasattr(self, "http"):
            return
        for happened in self.http.handle_event(event):
            if isinstance(happened, HeadersReceived):
                self.http.send_headers(happened.stream_id, [(b":status", b"200")])
                self.http.send_data(happened.stream_id, self.content, end_stream=True)
                self.transmit()


@only_asyncio
@pytest.mark.parametrize("retry", [True, False])
async def test_our_client_understands_their_server(
    driver: str, authority: trustme.CA, folder: Path, retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TheirServer, "content", (folder / "large.bin").read_bytes())
    server = await their_serve(
        "127.0.0.1",
        0,
        configuration=for_server(authority),
        create_protocol=TheirServer,
        retry=retry,
    )
    port = cast(Any, server)._transport.get_extra_info("sockname")[1]
    hashed = hashlib.sha256()
    try:
        async with (
            zc_anyio.open_ring(driver=driver),
            connect("127.0.0.1", port, for_client(authority)) as client,
        ):
            response = await client.get("/any", hashed.update)
            assert (response.status, response.size) == (200, SIZE)
        assert hashed.digest() == hashlib.sha256(TheirServer.content).digest()
    finally:
        server.close()
