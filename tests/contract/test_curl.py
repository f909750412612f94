"""A real peer: curl downloads what a send group sends."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

import zc_anyio
from tests.support.needs import need_command

SIZE = 20 << 20


@pytest.mark.anyio
async def test_curl_downloads_a_body_that_a_group_sends(driver: Any, tmp_path: Path) -> None:
    curl = need_command("curl", "curl")
    body = os.urandom(SIZE)
    files = [tmp_path / str(number) for number in range(3)]

    async def serve(stream: SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive()
            header = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % SIZE
            buffer = bytearray(256 << 10)
            async with zc_anyio.send_group() as group:
                await group.send(stream, header)
            for start in range(0, SIZE, len(buffer)):
                # One buffer for all: each part waits for the release of the one before.
                buffer[:] = body[start : start + len(buffer)]
                async with zc_anyio.send_group() as group:
                    await group.send(stream, buffer)

    def download(file: Path) -> None:
        command = [curl, "--silent", "--show-error", "--noproxy", "*", "--max-time", "30"]
        subprocess.run([*command, "--output", str(file), url], check=True)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/"
        async with zc_anyio.open_ring(driver=driver) as ring, anyio.create_task_group() as tg:
            tg.start_soon(listener.serve, serve)
            async with anyio.create_task_group() as downloads:
                for file in files:
                    downloads.start_soon(anyio.to_thread.run_sync, download, file)
            tg.cancel_scope.cancel()
        assert ring.statistics().failed == 0
    expected = hashlib.sha256(body).hexdigest()
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == expected
