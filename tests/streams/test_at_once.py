"""The kernel has a small message when the call returns, whatever the program does then."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import zc_anyio
from tests.support.waiting import until_blocking


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", ["auto", "always", "never"])
async def test_a_small_message_leaves_with_the_call(driver: Any, zero_copy: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            address = listener.getsockname()
            async with await zc_anyio.connect_tcp(*address, ring=ring) as stream:
                peer, _ = listener.accept()
                with peer:
                    peer.setblocking(False)
                    for number in range(3):
                        message = b"now %d" % number
                        await stream.send(message)
                        # Nothing else has a turn of the event loop in between.
                        received = bytearray()

                        def arrived(received: bytearray = received, size: int = 5) -> bool:
                            try:
                                received += peer.recv(100)
                            except BlockingIOError:
                                return False
                            return len(received) >= size

                        until_blocking(arrived)
                        assert received == message
