"""Other programs at the other end: curl, httpx, nginx, and OpenSSL's own client and server."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from tests.streams.web_servers import nginx
from tests.support.needs import need_command
from tests.support.waiting import LIMIT
from tests.tls.sessions import (
    AUTHORITY,
    DATA,
    SESSIONS,
    check_place,
    client_context,
    counted_by_kernel,
    echo,
    kernel_encrypts,
    server_context,
    wrap,
)
from zc_anyio import tls
from zc_anyio.httpcore import httpx_transport

pytestmark = pytest.mark.anyio

DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> str:
    """The file of a certificate that a client is to trust."""
    path = tmp_path / "root.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(params=list(SESSIONS))
def session(request: pytest.FixtureRequest) -> str:
    return request.param


@asynccontextmanager
async def serving(path: Path, place: str, session: str) -> AsyncIterator[str]:
    """Serve a file by HTTPS in the ambient ring, and yield its address."""
    path.write_bytes(DATA)

    async def serve(stream: Any) -> None:
        check_place(stream, place, session)
        async with stream:
            assert (await stream.receive()).startswith(b"GET ")
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            await stream.send(head % len(DATA))
            if stream.extra(tls.KernelTLSAttribute.kernel_sends):
                async with zc_anyio.send_group() as group:
                    await group.send_file(stream, path)
            else:
                await stream.send(DATA)

    below = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
    listener = tls.TLSListener(below, server_context(session), standard_compatible=False)
    with counted_by_kernel(growing=kernel_encrypts(place, session)):
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield f"https://localhost:{below.extra(SocketAttribute.local_port)}/"
            tasks.cancel_scope.cancel()


async def test_curl_downloads_a_file(
    driver: Any, place: str, session: str, root: str, tmp_path: Path
) -> None:
    curl = need_command("curl", "curl")
    async with zc_anyio.open_ring(driver=driver):
        async with serving(tmp_path / "file", place, session) as url:
            command = [curl, "-sS4", "--noproxy", "*", "--cacert", root, url]
            done = await anyio.run_process(command)
            assert done.stdout == DATA


async def test_httpx_downloads_a_file(place: str, session: str, tmp_path: Path) -> None:
    async with zc_anyio.open_ring(), serving(tmp_path / "file", place, session) as url:
        async with httpx.AsyncClient(verify=client_context(), trust_env=False) as client:
            assert (await client.get(url, timeout=LIMIT)).content == DATA


async def test_httpx_over_the_ring(driver: Any, place: str, tmp_path: Path) -> None:
    """Bodies to nginx and back; what is sent goes by the kernel where it encrypts."""
    async with zc_anyio.open_ring(driver=driver) as ring:
        with nginx(AUTHORITY, tmp_path) as web, counted_by_kernel(growing=kernel_encrypts(place)):
            transport = httpx_transport(verify=client_context(), trust_env=False)
            url = f"{web.urls['https']}/files/stored"
            async with httpx.AsyncClient(transport=transport, timeout=LIMIT) as client:
                for _ in range(3):  # on one connection
                    assert (await client.put(url, content=DATA)).is_success
                    assert (web.files / "stored").read_bytes() == DATA
                    assert (await client.get(url)).content == DATA
                pool: Any = transport._pool
                assert len(pool.connections) == 1
        assert (ring.statistics().kernel_tls > 0) == kernel_encrypts(place)


async def test_s_client_sends_and_receives(place: str, session: str, root: str) -> None:
    openssl = need_command("openssl", "openssl")
    async with zc_anyio.open_ring():
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        address = f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        command = [openssl, "s_client", "-quiet", "-verify_quiet", "-verify_return_error"]
        command += ["-CAfile", root, "-servername", "localhost", "-connect", address]
        got, back = bytearray(), bytearray()
        async with listener, await anyio.open_process(command, stderr=None) as process:
            output: Any = process.stdout
            accepted: Any = await listener.listeners[0].accept()  # type: ignore[attr-defined]

            async def say() -> None:
                assert process.stdin is not None
                await process.stdin.send(DATA)

            async def serve() -> None:
                async with await wrap(accepted, place, context=server_context(session)) as stream:
                    check_place(stream, place, session)
                    while len(got) < len(DATA):
                        got.extend(await stream.receive())
                    await stream.send(bytes(got))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(say)
                tasks.start_soon(serve)
                with anyio.fail_after(LIMIT):
                    async for data in output:
                        back.extend(data)
        assert got == DATA
        assert back == DATA


async def test_s_server_sends_a_file(place: str, session: str, tmp_path: Path) -> None:
    openssl = need_command("openssl", "openssl")
    (tmp_path / "file").write_bytes(DATA)
    certificate = tmp_path / "certificate.pem"
    AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    ciphers = SESSIONS[session][1]
    command = [openssl, "s_server", "-accept", "127.0.0.1:0", "-WWW", "-cert", str(certificate)]
    command += ["-tls1_3"] if ciphers is None else ["-tls1_2", "-cipher", ciphers]
    async with zc_anyio.open_ring():
        async with await anyio.open_process(
            command, cwd=tmp_path, stderr=subprocess.STDOUT
        ) as process:
            output: Any = process.stdout
            said = b""
            while (found := re.search(rb"ACCEPT 127.0.0.1:(\d+)\n", said)) is None:
                said += await output.receive()
            for _ in range(2):
                stream = await zc_anyio.connect_tcp(
                    "127.0.0.1",
                    int(found[1]),
                    ssl_context=client_context(),
                    tls_hostname="localhost",
                    tls_standard_compatible=False,
                )
                async with stream:
                    check_place(stream, place, session)
                    await stream.send(b"GET /file HTTP/1.0\r\n\r\n")
                    got = b"".join([data async for data in stream])
                assert got.partition(b"\r\n\r\n")[2] == DATA
            process.kill()


async def test_this_library_at_both_ends(driver: Any, place: str, session: str) -> None:
    async def serve(stream: Any) -> None:
        check_place(stream, place, session)
        async with stream:
            async for data in stream:
                await stream.send(data)

    async with zc_anyio.open_ring(driver=driver):
        below = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        listener = tls.TLSListener(below, server_context(session))
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            async with await zc_anyio.connect_tcp(
                "127.0.0.1",
                below.extra(SocketAttribute.local_port),
                ssl_context=client_context(),
            ) as stream:
                check_place(stream, place, session)
                await echo(stream, DATA)
            tasks.cancel_scope.cancel()
