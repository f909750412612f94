"""No room for notifications, or for locked memory: sent by copying, and counted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

import zc_anyio
from tests.support.confined import run_confined
from tests.support.needs import missing, need_root
from tests.support.netns import Rig
from tests.support.peers import Reader

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_few_notifications_may_be_due(namespaces: Rig) -> None:
    # Since Linux 6.8 each namespace has the setting; before that there is none in a namespace.
    def restrict() -> None:
        try:
            Path("/proc/sys/net/core/optmem_max").write_text("4096", encoding="ascii")
        except OSError as exc:
            missing(f"net.core.optmem_max cannot be set for a network namespace: {exc}")

    namespaces.sender.run(restrict)
    count, size = 200, 20_000
    buffers = [bytearray(os.urandom(size)) for _ in range(count)]
    expected = b"".join(buffers)
    with namespaces.connection() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(
            driver="msg_zerocopy", zero_copy="always", threshold=0
        ) as ring:
            async with zc_anyio.send_group() as group:
                for buffer in buffers:
                    # Each is a request of its own, so that more notifications are due than allowed.
                    await group.send(client, buffer)
                    group.flush()
            for buffer in buffers:
                buffer[:] = bytes(size)
            counters = ring.statistics()
            assert (counters.sends, counters.failed) == (count, 0)
            assert counters.refused > 0
            # Some were zero-copied all the same.
            assert counters.completions > counters.requests
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


MEMLOCK = """
import encodings.ascii  # read when privileges are gone, and then perhaps out of reach

async def main():
    lockable(128 << 10)
    drop_privileges()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    client.setblocking(False)
    peer, _ = server.accept()
    received = bytearray()
    def read():
        while data := peer.recv(1 << 20):
            received.extend(data)
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    expected = b""
    async with zc_anyio.open_ring(driver=sys.argv[1], zero_copy="always", threshold=0) as ring:
        assert ring.capabilities.zero_copy_limited
        for size in (1 << 20, 50_000, 2 << 20, 10):
            data = os.urandom(size)
            expected += data
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
        counters = ring.statistics()
        assert (counters.sends, counters.copied, counters.failed) == (4, 4, 0), counters
        assert counters.refused > 0, counters
    client.close()
    thread.join(20)
    assert received == expected
    peer.close(), server.close()

anyio.run(main)
print("done")
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_little_memory_may_be_locked(holding_driver: str) -> None:
    need_root("dropping privileges")
    assert run_confined(MEMLOCK, holding_driver) == "done\n"
