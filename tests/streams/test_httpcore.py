"""httpx over this library's connections, to a real nginx and to a server over its listener."""

from __future__ import annotations

import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

import zc_anyio
from tests.streams.web_servers import Nginx, nginx, own_server
from tests.support.backends import one_backend
from tests.support.peers import digest
from tests.support.waiting import LIMIT
from zc_anyio.httpcore import httpx_transport

MIB = 1 << 20
# The pieces in which the backend sends a body.
PIECE = 256 << 10
BODY = random.Random(2).randbytes(2 * MIB + 17)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """What a client needs to accept the servers' certificates."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def web(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(authority, tmp_path_factory.mktemp("nginx")) as running:
        yield running


@asynccontextmanager
async def client(verify: Any = True, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An httpx client over the ambient ring."""
    transport = httpx_transport(verify=verify, trust_env=False, **options)
    async with httpx.AsyncClient(transport=transport, timeout=LIMIT) as made:
        yield made


async def download(made: httpx.AsyncClient, url: str) -> str:
    """Return the SHA-256 of what is at a URL."""
    received = hashlib.sha256()
    async with made.stream("GET", url) as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_raw():
            received.update(chunk)
    return received.hexdigest()


async def through_nginx(made: httpx.AsyncClient, web: Nginx, scheme: str, body: bytes) -> None:
    """Have nginx store a body and give it back; compare the file, and what came back."""
    url = f"{web.urls[scheme]}/files/stored"
    stored = web.files / "stored"
    try:
        answer = await made.put(url, content=body)
        assert answer.status_code in (201, 204), answer.text
        with stored.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest(body)
        assert await download(made, url) == digest(body)
    finally:
        stored.unlink(missing_ok=True)


async def through_own(made: httpx.AsyncClient, url: str, body: bytes) -> None:
    """Have the test's own server digest a body, and download the same from it."""
    assert (await made.put(url, content=body)).text == digest(body)
    assert await download(made, url) == digest(body)


def check(ring: zc_anyio.Ring, driver: str, least: int) -> None:
    """Assert that bodies of so many bytes went out through the ring, in large pieces."""
    counters = ring.statistics()
    assert counters.driver == driver
    assert counters.bytes_sent >= least
    assert counters.failed == 0
    assert counters.sends <= least // PIECE + 20
    if driver != "copy":
        assert counters.requests > 0
        assert counters.staged <= 20


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_bodies_to_nginx_and_back(
    driver: Any, scheme: str, web: Nginx, trusting: ssl.SSLContext
) -> None:
    async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
        async with client(trusting) as made:
            await through_nginx(made, web, scheme, BODY)
        check(ring, driver, len(BODY))


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_bodies_to_the_own_server_and_back(
    driver: Any, scheme: str, serving: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
        tls = serving if scheme == "https" else None
        async with own_server(BODY, tls) as url, client(trusting) as made:
            await through_own(made, url, BODY)
        # The server's streams are of the same ring.
        check(ring, driver, 2 * len(BODY))


@pytest.mark.anyio
@one_backend
async def test_32_mib_to_nginx_and_back(driver: Any, web: Nginx) -> None:
    body = BODY[: 2 * MIB] * 16
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with client() as made:
            await through_nginx(made, web, "http", body)
        assert ring.statistics().bytes_sent >= len(body)


@pytest.mark.anyio
async def test_a_unix_socket(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with own_server(BODY, path=path) as url, client(uds=str(path)) as made:
            await through_own(made, url, BODY)
        assert ring.statistics().bytes_sent >= 2 * len(BODY)


@pytest.mark.anyio
async def test_a_body_that_is_made_while_it_is_sent(driver: Any) -> None:
    sizes = (1, 100_000, 300_000, 0, 1_000_000)

    async def pieces() -> AsyncIterator[bytes]:
        for size in sizes:
            yield BODY[:size]
            await anyio.sleep(0.001)

    sent = b"".join(BODY[:size] for size in sizes)
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with own_server(b"") as url, client() as made:
            assert (await made.put(url, content=pieces())).text == digest(sent)
        assert ring.statistics().bytes_sent > len(sent)


@pytest.mark.anyio
async def test_many_requests_at_once(driver: Any) -> None:
    body = BODY[:300_000]
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with own_server(body) as url, client() as made, anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(through_own, made, url, body)
        counters = ring.statistics()
        assert counters.bytes_sent >= 24 * len(body)
        if driver == "io_uring":
            # As many tasks wait, the ring receives for them.
            assert counters.receives > 24


@pytest.mark.anyio
async def test_an_answer_before_the_body_was_taken(driver: Any, web: Nginx) -> None:
    async with zc_anyio.open_ring(driver=driver), client() as made:
        answer = await made.put(f"{web.urls['http']}/refused/file", content=BODY)
        assert answer.status_code == 413
