"""A slow member delays nobody, is told why it is dropped, and leaves nothing behind."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from examples.chat.members import SLOW
from examples.chat.messages import IMAGE_BYTES
from tests.examples.chat.chatting import PNG, Member, chat_server, member
from tests.support.backends import BACKENDS, one_backend
from tests.support.needs import missing, why_not
from tests.support.waiting import LIMIT, until

KIB = 1 << 10
# A text of 16 KB, as large as one can be.  The kernel takes some hundreds of these for a peer that
# does not read.
TEXT = "\N{GRINNING FACE}" * 4000
SMALL = 8 << 10
# A frame that needs no answer; its mask is zeros.
PONG = b"\x8a\x80" + bytes(4)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for slow members more often than necessary, so that tests need not wait."""
    monkeypatch.setattr("examples.chat.chat.SWEEP_SECONDS", 0.05)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """A way to send that can run here."""
    name = request.param.removeprefix("--driver=")
    if (reason := why_not(name)) is not None:
        missing(f"the driver {name} cannot run: {reason}")
    return request.param


# Every event loop and every way to send, but not all combinations: these tests take long.
every_way = pytest.mark.parametrize(
    ("anyio_backend", "way"),
    [
        *(pytest.param(loop.values[0], "--driver=io_uring", id=str(loop.id)) for loop in BACKENDS),
        pytest.param(BACKENDS[0].values[0], "--driver=msg_zerocopy", id="msg_zerocopy"),
        pytest.param(BACKENDS[2].values[0], "--driver=copy", id="copy"),
    ],
    indirect=True,
)


async def until_reset(stalled: Member) -> None:
    """Wait until a member that reads nothing has been reset."""
    stream = stalled.connection.stream
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
    with anyio.fail_after(LIMIT):
        while not raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            # A reset that comes while the buffer here is full can be lost; this asks again.
            try:
                await stream.send(PONG)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            await anyio.sleep(0.05)


@pytest.mark.anyio
@every_way
async def test_a_member_that_lets_too_much_wait_is_dropped_and_told(way: str) -> None:
    async with (
        chat_server(way, queue_bytes=512 * KIB) as server,
        member(server, "quick") as quick,
        member(server, "slow", receive_buffer=SMALL) as slow,
    ):
        sent = 0
        dropped = False
        while "slow" not in (await quick.receive("presence"))["joined"]:
            pass
        while not dropped:
            await quick.say(TEXT)
            sent += 1
            # The others get everything meanwhile.
            message = await quick.receive("message", "presence")
            while message["type"] == "presence":
                dropped = dropped or "slow" in message["left"]
                message = await quick.receive("message", "presence")
            assert message["text"] == TEXT
            await anyio.sleep(0.001)
        # What waited for it is not lost, and after that comes the reason why it is dropped.
        received = 0
        with pytest.raises(Exception, match="too slow") as caught:
            while True:
                assert (await slow.receive("message"))["text"] == TEXT
                received += 1
        assert getattr(caught.value, "code", None) == SLOW
        assert 512 * KIB / 16_000 <= received < sent


@pytest.mark.anyio
@every_way
async def test_a_member_that_reads_nothing_is_reset_and_nothing_is_kept_for_it(way: str) -> None:
    limits: dict[str, Any] = {"queue_bytes": 512 * KIB, "close_seconds": 0.2}
    async with (
        chat_server(way, **limits) as server,
        member(server, "quick") as quick,
        member(server, "stalled", receive_buffer=SMALL) as stalled,
    ):
        reset = anyio.Event()

        async def send() -> None:
            while not reset.is_set():
                await quick.say(TEXT)
                await quick.receive_texts(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await until_reset(stalled)
            reset.set()
        ring = server.ring
        await until(lambda: ring.statistics().held + ring.statistics().in_flight == 0)


@pytest.mark.anyio
@every_way
async def test_a_member_for_whom_little_waits_for_long_is_dropped(way: str) -> None:
    async with (
        chat_server(way, lag_seconds=0.2, close_seconds=0.2) as server,
        member(server, "quick") as quick,
        member(server, "stalled", receive_buffer=SMALL) as stalled,
    ):
        reset = anyio.Event()

        async def send() -> None:
            # More than both kernel buffers take, or there would be nothing that waits.
            for _ in range(50):
                await quick.say(TEXT)
                await quick.receive_texts(1)
            while not reset.is_set():
                await quick.say("on and on")
                await quick.receive_texts(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await until_reset(stalled)
            reset.set()


@pytest.mark.anyio
@one_backend
async def test_large_pictures_make_nobody_slow() -> None:
    """At 3 Mbit/s, these four would take longer than anything may wait."""
    async with (
        chat_server(queue_bytes=64 * KIB, lag_seconds=0.2) as server,
        member(server, "quick") as quick,
        member(server, "slow", receive_buffer=SMALL) as slow,
    ):
        for _ in range(4):
            await quick.post_picture(PNG + bytes(IMAGE_BYTES - len(PNG)))
            await quick.receive("ack")
        await anyio.sleep(0.5)
        told = [await slow.receive("image") for _ in range(4)]
        assert {fields["size"] for fields in told} == {IMAGE_BYTES}
        assert (await slow.say_and_wait("still here"))["type"] == "ack"


@pytest.mark.anyio
@one_backend
async def test_a_silent_member_is_dropped_and_one_that_answers_pings_is_not() -> None:
    async with (
        chat_server(ping_seconds=1) as server,
        member(server, "quick") as quick,
        member(server, "silent") as silent,
    ):
        # The pings are answered where messages are received.
        with anyio.fail_after(LIMIT):
            while "silent" not in (await quick.receive("presence"))["left"]:
                pass
        assert "lost" in str(await silent.closed())
        assert (await quick.say_and_wait("still here"))["type"] == "ack"
