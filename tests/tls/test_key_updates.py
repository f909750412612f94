"""New keys of TLS 1.3 in the middle of a connection: of the peer's, and asked of this end."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from tests.support.needs import need_command
from tests.support.waiting import LIMIT
from tests.tls.sessions import DATA, kernel_encrypts, wrap
from zc_anyio._tls import key_requests

pytestmark = pytest.mark.anyio

# Letters of s_client's: new keys of its own, and of both ends.
OWN, BOTH = b"k\n", b"K\n"


class Client:
    """OpenSSL's ``s_client``, which changes keys when it is told to."""

    def __init__(self, process: Any) -> None:
        self.process, self.said = process, b""

    async def say(self, line: bytes) -> None:
        await self.process.stdin.send(line)

    async def change(self, letter: bytes) -> None:
        """Have it change keys, which it tells; it takes a letter only if that is alone."""
        before = self.said.count(b"KEYUPDATE")
        await self.say(letter)
        await self.hear(b"KEYUPDATE", before + 1)

    async def hear(self, words: bytes, times: int = 1) -> None:
        with anyio.fail_after(LIMIT):
            while self.said.count(words) < times:
                self.said += await self.process.stdout.receive()


@asynccontextmanager
async def connected(place: str, *, standard: bool = False) -> AsyncIterator[tuple[Any, Client]]:
    """A stream, and ``s_client`` at its other end; it may be closed within."""
    openssl = need_command("openssl", "openssl")
    listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"]
    async with listener, await anyio.open_process(command, stderr=subprocess.STDOUT) as process:
        accepted: Any = await listener.listeners[0].accept()  # type: ignore[attr-defined]
        stream = await wrap(accepted, place, standard_compatible=standard)
        client = Client(process)
        try:
            await client.hear(b"Verify return code")
            yield stream, client
        finally:
            await anyio.aclose_forcefully(stream)
            process.kill()


async def exchange(stream: Any, client: Client, word: bytes) -> None:
    await client.say(word + b"\n")
    assert await stream.receive() == word + b"\n"
    await stream.send(b"answer to " + word)
    await client.hear(b"answer to " + word)


async def test_a_peer_changes_its_own_keys(driver: Any, place: str) -> None:
    async with zc_anyio.open_ring(driver=driver), connected(place) as (stream, client):
        for word in b"one", b"two", b"three":
            await client.change(OWN)
            await exchange(stream, client, word)


async def test_a_peer_asks_for_new_keys(driver: Any, place: str) -> None:
    if kernel_encrypts(place):
        pytest.skip("see below")
    async with zc_anyio.open_ring(driver=driver), connected(place) as (stream, client):
        for letter, word in (BOTH, b"one"), (OWN, b"two"), (BOTH, b"three"), (BOTH, b"four"):
            await client.change(letter)
            await exchange(stream, client, word)


@pytest.mark.parametrize("standard", [True, False], ids=["standard", "not-standard"])
async def test_a_kernel_is_asked_for_new_keys(
    driver: Any, place: str, standard: bool, tmp_path: Path
) -> None:
    """Nothing more is sent, under no keys; what the peer sends still arrives, in all its keys."""
    if not kernel_encrypts(place):
        pytest.skip("OpenSSL changes them, see above")
    path = tmp_path / "file"
    path.write_bytes(DATA)
    async with zc_anyio.open_ring(driver=driver), connected(place, standard=standard) as pair:
        stream, client = pair
        await exchange(stream, client, b"one")
        await client.change(BOTH)
        await client.say(b"two\n")
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
            await client.change(letter)
            await client.say(word)
            assert await stream.receive() == word
        assert b":error:" not in client.said
        await stream.aclose()
        # The end comes without a close_notify: the peer is not to take it for the end of the data.
        with anyio.fail_after(LIMIT):
            async for said in client.process.stdout:
                client.said += said
        assert b"unexpected eof" in client.said
        assert b"forbidden" not in client.said


async def test_streams_are_not_kept(driver: Any, place: str) -> None:
    gc.collect()
    before = len(key_requests._streams)
    async with zc_anyio.open_ring(driver=driver), connected(place) as (stream, client):
        await exchange(stream, client, b"one")
        assert len(key_requests._streams) == before + kernel_encrypts(place)
        del stream, client
    gc.collect()
    assert len(key_requests._streams) <= before
