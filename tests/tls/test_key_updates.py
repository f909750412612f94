"""New keys of TLS 1.3 in the middle of a connection: of the peer's, and asked of this end."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from tests.support.needs import need_command
from tests.support.waiting import LIMIT
from tests.tls.sessions import CERTIFICATE, DATA, client_context, kernel_encrypts, wrap
from zc_anyio._tls import key_requests

pytestmark = pytest.mark.anyio

# Letters of s_client's and s_server's: new keys of its own, and of both ends.
OWN, BOTH = b"k\n", b"K\n"


@pytest.fixture(params=["server", "client"])
def end(request: pytest.FixtureRequest) -> str:
    """Which end of the connection is this library's."""
    return request.param


class Program:
    """OpenSSL's ``s_client`` or ``s_server``, which changes keys when it is told to.

    :param tells: what it says when it has done so, unless it keeps its output back.
    """

    def __init__(self, process: Any, tells: bytes | None) -> None:
        self.process, self.tells, self.said = process, tells, b""

    async def say(self, line: bytes) -> None:
        await self.process.stdin.send(line)

    async def change(self, letter: bytes) -> None:
        """Have it change keys; it takes a letter only if that is alone."""
        before = self.said.count(self.tells or b"")
        await self.say(letter)
        if self.tells is None:
            await anyio.sleep(0.2)
        else:
            await self.hear(self.tells, before + 1)

    async def hear(self, words: bytes, times: int = 1) -> None:
        with anyio.fail_after(LIMIT):
            while self.said.count(words) < times:
                self.said += await self.process.stdout.receive()


@asynccontextmanager
async def program(tells: bytes | None, *arguments: str) -> AsyncIterator[Program]:
    openssl = need_command("openssl", "openssl")
    command = [openssl, *arguments, "-tls1_3"]
    async with await anyio.open_process(command, stderr=subprocess.STDOUT) as process:
        try:
            yield Program(process, tells)
        finally:
            with suppress(ProcessLookupError):
                process.kill()


@asynccontextmanager
async def connected(
    place: str, end: str, *, standard: bool = False
) -> AsyncIterator[tuple[Any, Program]]:
    """A stream, and OpenSSL's program at its other end; it may be closed within."""
    if end == "server":
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        address = f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        async with listener, program(b"KEYUPDATE", "s_client", "-connect", address) as other:
            accepted: Any = await listener.listeners[0].accept()  # type: ignore[attr-defined]
            stream = await wrap(accepted, place, standard_compatible=standard)
            try:
                await other.hear(b"Verify return code")
                yield stream, other
            finally:
                await anyio.aclose_forcefully(stream)
        return
    with CERTIFICATE.private_key_and_cert_chain_pem.tempfile() as file:
        command = ["s_server", "-accept", "127.0.0.1:0", "-cert", file]
        async with program(None, *command) as other:
            await other.hear(b"ACCEPT 127.0.0.1:")
            port = int(other.said.rpartition(b":")[2])
            stream = await zc_anyio.connect_tcp(
                "127.0.0.1",
                port,
                ssl_context=client_context(),
                tls_standard_compatible=standard,
            )
            try:
                await other.hear(b"CIPHER is")
                yield stream, other
            finally:
                await anyio.aclose_forcefully(stream)


async def exchange(stream: Any, other: Program, word: bytes) -> None:
    await other.say(word + b"\n")
    assert await stream.receive() == word + b"\n"
    await stream.send(b"answer to " + word)
    await other.hear(b"answer to " + word)


async def test_a_peer_changes_its_own_keys(driver: Any, place: str, end: str) -> None:
    async with zc_anyio.open_ring(driver=driver), connected(place, end) as (stream, other):
        for word in b"one", b"two", b"three":
            await other.change(OWN)
            await exchange(stream, other, word)


async def test_a_peer_asks_for_new_keys(driver: Any, place: str, end: str) -> None:
    if kernel_encrypts(place):
        pytest.skip("see below")
    async with zc_anyio.open_ring(driver=driver), connected(place, end) as (stream, other):
        for letter, word in (BOTH, b"one"), (OWN, b"two"), (BOTH, b"three"), (BOTH, b"four"):
            await other.change(letter)
            await exchange(stream, other, word)


@pytest.mark.parametrize("standard", [True, False], ids=["standard", "not-standard"])
async def test_a_kernel_is_asked_for_new_keys(
    driver: Any, place: str, end: str, standard: bool, tmp_path: Path
) -> None:
    """Nothing more is sent, under no keys; what the peer sends still arrives, in all its keys."""
    if not kernel_encrypts(place):
        pytest.skip("OpenSSL changes them, see above")
    path = tmp_path / "file"
    path.write_bytes(DATA)
    async with zc_anyio.open_ring(driver=driver), connected(place, end, standard=standard) as pair:
        stream, other = pair
        await exchange(stream, other, b"one")
        await other.change(BOTH)
        await other.say(b"two\n")
        assert await stream.receive() == b"two\n"
        for data in b"forbidden", bytearray(DATA):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.send(data)
            assert "new keys" in str(caught.value.__cause__)
        async with zc_anyio.send_group() as group:
            with pytest.raises(anyio.BrokenResourceError):
                await group.send(stream, b"forbidden")
            with pytest.raises(anyio.BrokenResourceError):
                await group.send_file(stream, path)
            with pytest.raises(TypeError):
                await group.send(stream.transport_stream, b"forbidden")
        with pytest.raises(anyio.ClosedResourceError):
            await stream.transport_stream.send(b"forbidden")
        with pytest.raises(anyio.BrokenResourceError):
            await stream.unwrap()
        for letter, word in (OWN, b"three\n"), (BOTH, b"four\n"):
            await other.change(letter)
            await other.say(word)
            assert await stream.receive() == word
        assert b":error:" not in other.said
        await stream.aclose()
        # The end comes without a close_notify: the peer is not to take it for the end of the data.
        await other.hear(b"unexpected eof")
        assert b"forbidden" not in other.said


async def test_streams_are_not_kept(driver: Any, place: str, end: str) -> None:
    gc.collect()
    before = len(key_requests._streams)
    async with zc_anyio.open_ring(driver=driver), connected(place, end) as (stream, other):
        await exchange(stream, other, b"one")
        assert len(key_requests._streams) == before + kernel_encrypts(place)
        del stream, other
    gc.collect()
    assert len(key_requests._streams) <= before
