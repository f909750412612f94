"""What members may not do, and that trying it harms nobody else."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable

import anyio
import httpx
import pytest

from examples.chat.messages import IMAGE_BYTES, PREVIEW_BYTES, TEXT_FRAME_BYTES
from tests.examples.chat.chatting import PNG, Member, Running, chat_server, member, stream_to
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """Return a frame, right or wrong, as a client may send it."""
    size = len(payload)
    mask = 0x80 if masked else 0
    first = bytes([opcode | (0x80 if fin else 0)])
    if size < 126:
        head = first + bytes([mask | size])
    elif size < 1 << 16:
        head = first + bytes([mask | 126]) + struct.pack("!H", size)
    else:
        head = first + bytes([mask | 127]) + struct.pack("!Q", size)
    # A key of zeros leaves the payload as it is.
    return head + (bytes(4) if masked else b"") + payload


TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
SAY = json.dumps({"type": "say", "nonce": "1", "text": "hello"}).encode()
VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "not masked": (frame(TEXT, SAY, masked=False), 1002),
    "unknown opcode": (frame(5, b""), 1002),
    "reserved bit": (bytes([0x40 | 0x80 | TEXT, 0x80]) + bytes(4), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
    "fragmented ping": (frame(PING, b"", fin=False), 1002),
    "large ping": (frame(PING, bytes(126)), 1002),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "close with a code that is not sent": (frame(CLOSE, struct.pack("!H", 1006)), 1002),
    "not JSON": (frame(TEXT, b"hello"), 1008),
    "deep JSON": (frame(TEXT, b"[" * 50_000), 1008),
    "a list": (frame(TEXT, b"[]"), 1008),
    "unknown type": (frame(TEXT, b'{"type": "shout"}'), 1008),
    "no text": (frame(TEXT, b'{"type": "say", "nonce": "1"}'), 1008),
    "a number as text": (frame(TEXT, b'{"type": "say", "nonce": "1", "text": 1}'), 1008),
    "a picture": (frame(BINARY, PNG), 1008),
    "too much text": (frame(TEXT, b"x" * (TEXT_FRAME_BYTES + 1)), 1009),
    "text without an end": (frame(TEXT, b"x" * 1000, fin=False) * 100, 1002),
    "too much that is not text": (frame(BINARY, bytes(TEXT_FRAME_BYTES + 1)), 1009),
}


@pytest.mark.anyio
@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_what_is_against_the_protocol_ends_the_connection(violation: str) -> None:
    data, code = VIOLATIONS[violation]
    async with (
        chat_server() as server,
        member(server, "good") as good,
        member(server, "bad") as bad,
    ):

        async def send() -> None:
            # It may be closed before it has sent everything.
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await bad.connection.stream.send(data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            closed = await bad.closed()
        assert closed.code == code, closed
        assert (await good.say_and_wait("unharmed"))["type"] == "ack"


@pytest.mark.anyio
async def test_refused_messages_are_reported_and_the_member_stays() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        for text, reason in (("  \x00 ", "empty"), ("x" * 4001, "4000 characters")):
            answer = await ada.say_and_wait(text)
            assert answer["type"] == "refused"
            assert reason in answer["reason"]
        for content in (b"<svg onload=alert(1)>", b"", b"GIF"):
            nonce = await ada.post_picture(content)
            refused = await ada.receive("refused")
            assert refused["nonce"] == nonce
            assert "PNG, JPEG" in refused["reason"]
        await ada.post_picture(PNG + bytes(IMAGE_BYTES))
        assert "larger than 8 MiB" in (await ada.receive("refused"))["reason"]
        await ada.post_picture(PNG + bytes(IMAGE_BYTES - len(PNG)))
        assert (await ada.receive("ack", "refused"))["type"] == "ack"


@pytest.mark.anyio
@one_backend
async def test_a_preview_that_is_none_is_refused() -> None:
    picture = PNG + bytes(1000)
    async with chat_server() as server, member(server, "ada") as ada:
        for preview in (b"<svg>", PNG + bytes(PREVIEW_BYTES)):
            await ada.post_picture(picture, preview=preview)
            assert "the preview is no picture" in (await ada.receive("refused"))["reason"]
        small = b"\xff\xd8\xff" + bytes(PREVIEW_BYTES - 3)
        await ada.post_picture(PNG + bytes(IMAGE_BYTES - len(PNG)), preview=small)
        told = await ada.receive("image", "refused")
        assert (told["size"], told["preview"]) == (IMAGE_BYTES, PREVIEW_BYTES)
        async with httpx.AsyncClient() as client:
            shown = await client.get(f"{server.url}pictures/lobby/{told['id']}/preview")
            assert (shown.headers["content-type"], shown.content) == ("image/jpeg", small)
        whole = await ada.connection.picture(told["id"])
        assert whole == PNG + bytes(IMAGE_BYTES - len(PNG))


@pytest.mark.anyio
async def test_a_message_in_many_fragments_is_one_message() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        stream = ada.connection.stream
        await stream.send(frame(TEXT, SAY[:1], fin=False))
        for at in range(1, len(SAY) - 1):
            await stream.send(frame(0, SAY[at : at + 1], fin=False) + frame(PING, b"?"))
        await stream.send(frame(0, SAY[-1:]))
        assert await ada.receive_texts(1) == ["hello"]


async def flood(one: Member, data: bytes) -> None:
    try:
        with anyio.fail_after(LIMIT):
            while True:
                await one.connection.stream.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass


FLOODS: dict[str, Callable[[], bytes]] = {
    "messages": lambda: frame(TEXT, SAY) * 100,
    "pings": lambda: frame(PING, b"?") * 1000,
    "empty fragments": lambda: (
        frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * 30_000 + frame(0, SAY)
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_is_refused_and_then_ends_the_connection(kind: str) -> None:
    async with (
        chat_server(message_rate=1, message_burst=5) as server,
        member(server, "good") as good,
        member(server, "bad") as bad,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood, bad, FLOODS[kind]())
            closed = await bad.closed()
            # It is reset if it goes on sending after the server has closed.
            assert closed.code in (1008, None), closed
            if closed.code is not None:
                assert "flooding" in str(closed)
            tasks.cancel_scope.cancel()
        assert (await good.say_and_wait("unharmed"))["type"] == "ack"


@pytest.mark.anyio
@one_backend
async def test_pictures_are_taken_at_a_rate() -> None:
    async with chat_server(picture_rate=1, picture_burst=1000) as server:
        async with member(server, "ada") as ada:
            answers = []
            for _ in range(3):
                await ada.post_picture(PNG + bytes(400))
                answers.append((await ada.receive("ack", "refused"))["type"])
            assert answers == ["ack", "ack", "refused"]


@pytest.mark.anyio
@one_backend
async def test_a_picture_that_never_ends_is_waited_for_within_limits() -> None:
    async with chat_server(address_uploads=1, upload_seconds=0.5) as server:
        async with member(server, "bad") as bad, member(server, "good") as good:
            async with await stream_to(server) as stream:
                await stream.send(
                    f"POST /pictures?token={bad.connection.token} HTTP/1.1\r\nHost: localhost\r\n"
                    "Content-Length: 1000000\r\n\r\n".encode()
                    + PNG
                )
                with anyio.fail_after(LIMIT):
                    assert (await stream.receive()).startswith(b"HTTP/1.1 408 ")
            await good.post_picture(PNG + bytes(1 << 20))
            assert (await good.receive("ack"))["type"] == "ack"


@pytest.mark.anyio
@one_backend
@pytest.mark.parametrize("limit", ["uploads", "address_uploads"])
async def test_few_pictures_are_received_at_the_same_time(limit: str) -> None:
    async with chat_server(**{limit: 1}) as server, member(server, "ada") as ada:
        head = (
            f"POST /pictures?token={ada.connection.token} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(PNG) + 1}\r\nExpect: 100-continue\r\n\r\n"
        ).encode()
        async with await stream_to(server) as first, await stream_to(server) as second:
            await first.send(head)
            # It is being received.
            assert (await first.receive()).startswith(b"HTTP/1.1 100 ")
            await second.send(head)
            assert (await second.receive()).startswith(b"HTTP/1.1 503 ")
            await first.send(PNG + b"x")
            assert (await first.receive()).startswith(b"HTTP/1.1 204 ")
        await ada.post_picture(PNG)
        assert [(await ada.receive("ack"))["type"] for _ in range(2)] == ["ack", "ack"]


async def answer_to(server: Running, *headers: str, method: str = "GET") -> bytes:
    """Return the answer to a handshake."""
    async with await stream_to(server) as stream:
        lines = [f"{method} /chat?room=lobby&name=x HTTP/1.1", *headers, "", ""]
        await stream.send("\r\n".join(lines).encode())
        with anyio.fail_after(LIMIT):
            return (await stream.receive()).partition(b"\r\n")[0]


HANDSHAKE = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


@pytest.mark.anyio
@one_backend
async def test_pages_of_other_sites_and_broken_handshakes_are_refused() -> None:
    async with chat_server("--origin", "https://friend.example") as server:
        host = f"Host: {server.host}"
        for origin, status in [
            (f"http://{server.host}", b"101"),
            ("https://friend.example", b"101"),
            ("https://friend.example.evil.example", b"403"),
            ("http://evil.example", b"403"),
            ("null", b"403"),
        ]:
            answer = await answer_to(server, host, *HANDSHAKE, f"Origin: {origin}")
            assert status in answer, (origin, answer)
        assert b"101" in await answer_to(server, host, *HANDSHAKE)
        for left_out in HANDSHAKE:
            rest = [line for line in HANDSHAKE if line != left_out]
            answer = await answer_to(server, host, *rest)
            assert b" 4" in answer, (left_out, answer)
        old = [line.replace("13", "8") for line in HANDSHAKE]
        assert b"426" in await answer_to(server, host, *old)
        assert b" 4" in await answer_to(server, host, *HANDSHAKE, method="DELETE")
