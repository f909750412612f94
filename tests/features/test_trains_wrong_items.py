"""``send_many`` with one item that is wrong: what comes before it is sent, nothing behind it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import zc_anyio
from tests.features.receivers import Collector
from tests.support.peers import bound, udp_pair

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# More than one call queues.
BEFORE = [b"%d" % number for number in range(700)]


class GivenUpError(Exception):
    """What an iterable raises."""


WRONG: dict[str, tuple[Any, type[Exception]]] = {
    "no-buffer": (1, TypeError),
    "text": ("text", TypeError),
    "with-gaps": (memoryview(b"abcd")[::2], BufferError),
    "released": (None, ValueError),
    "no-number": ((b"x", ("nowhere", 1)), ValueError),
    "raises": (GivenUpError, GivenUpError),
}


def items(wrong: Any, *, before: list[Any]) -> Iterator[Any]:
    yield from before
    if wrong is GivenUpError:
        raise GivenUpError
    if wrong is None:
        wrong = memoryview(b"abcd")
        wrong.release()
    yield wrong
    yield b"behind it"


@pytest.mark.parametrize("kind", WRONG)
async def test_a_group_sends_what_comes_before(driver: str, kind: str) -> None:
    wrong, error = WRONG[kind]
    with udp_pair() as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:  # type: ignore[arg-type]
            with pytest.raises(error):
                await group.send_many(sender, items(wrong, before=BEFORE))
            await group.flush().wait_released()
            assert ring.statistics().sends == len(BEFORE)
            await group.send(sender, b"")
    assert collector.received == BEFORE


@pytest.mark.parametrize("kind", [kind for kind in WRONG if kind != "no-number"])
async def test_a_connected_socket_sends_what_comes_before(driver: str, kind: str) -> None:
    wrong, error = WRONG[kind]
    with bound() as receiver, Collector(receiver) as collector:
        async with (
            zc_anyio.open_ring(driver=driver),  # type: ignore[arg-type]
            await zc_anyio.create_connected_udp_socket(*receiver.getsockname()) as sender,
        ):
            with pytest.raises(error):
                await sender.send_many(items(wrong, before=BEFORE))
            # What is changed after the call is what was sent before it.
            changing = bytearray(b"end")
            with pytest.raises(TypeError):
                await sender.send_many([changing, 1])  # type: ignore[list-item]
            changing[:] = b"new"
            await sender.send(b"")
    assert collector.received == [*BEFORE, b"end"]


@pytest.mark.parametrize("kind", [kind for kind in WRONG if kind != "no-number"])
async def test_a_socket_without_a_peer_sends_what_comes_before(driver: str, kind: str) -> None:
    wrong, error = WRONG[kind]
    with bound() as receiver, Collector(receiver) as collector:
        to: Any = receiver.getsockname()
        async with (
            zc_anyio.open_ring(driver=driver),  # type: ignore[arg-type]
            await zc_anyio.create_udp_socket(local_host="127.0.0.1") as sender,
        ):
            with pytest.raises(error):
                await sender.send_many((item, to) for item in items(wrong, before=BEFORE))
            # It takes all items before it looks names up, so an iterable that raises sends nothing.
            expected = [] if kind == "raises" else BEFORE
            await sender.send((b"", to))
    assert collector.received == expected
