"""A UNIX socket whose peer goes away with bytes unread."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import zc_anyio
from tests.support.waiting import until_parked


@pytest.mark.anyio
async def test_a_peer_that_closes_with_bytes_unread_fails_waiting_sends(driver: Any) -> None:
    client, peer = socket.socketpair()
    with client:
        client.setblocking(False)
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(client, bytes(4 << 20))
                await until_parked(ring)
                peer.close()
            assert isinstance(group.failures[0].error, ConnectionError)
