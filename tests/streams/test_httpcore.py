"""httpx over connections of ours, to a real nginx and to a server over a listener of ours."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trustme

import zc_anyio
from tests.streams.web_servers import Nginx, nginx, own_server
from tests.support.backends import one_backend
from tests.support.peers import SMALL_BUFFER, digest, listener, reset
from tests.support.waiting import LIMIT, until
from zc_anyio.httpcore import RingBackend, httpx_transport

MIB = 1 << 20
BODY = random.Random(2).randbytes(4 * MIB + 17)
DIGEST = digest(BODY)


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
    """Have a server of ours digest a body, and download the same from it."""
    assert (await made.put(url, content=body)).text == digest(body)
    assert await download(made, url) == digest(body)


def check(ring: zc_anyio.Ring, driver: str, least: int, sends: int) -> None:
    """Assert that bodies went out through the ring, in pieces as large as they can be."""
    counters = ring.statistics()
    assert counters.driver == driver
    assert counters.bytes_sent >= least
    assert counters.failed == 0
    assert counters.sends <= sends
    if driver == "io_uring":
        # Each piece was a request of its own at most, and none was written into staging memory.
        assert 0 < counters.requests
        assert counters.staged <= 10


PIECES = len(BODY) // (256 << 10) + 1


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_bodies_to_nginx_and_back(
    driver: Any, scheme: str, web: Nginx, trusting: ssl.SSLContext
) -> None:
    async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
        async with client(trusting) as made:
            await through_nginx(made, web, scheme, BODY)
        check(ring, driver, len(BODY), PIECES + 10)
