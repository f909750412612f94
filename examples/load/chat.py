"""Members of a chat room: most keep up, some read slowly, some read nothing.

Every message carries a number and the time.  A member that keeps up must see all numbers of each
sender in order, and all members must see the same messages in the same order.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
import zlib
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream
from wsproto.utilities import LocalProtocolError

from ..chat.connection import GONE, ChatConnection, ChatError, open_connection
from .figures import Figures
from .slow import connect_slow, wait_reset
from .waiting import wait_until

__all__ = ["ChatLoad"]

# Servers take this for a picture: they only check its beginning.
PNG = b"\x89PNG\r\n\x1a\n"
# How many connect at the same time.
CONNECTING = 50
# How long the last messages may take to arrive.
ARRIVE_SECONDS = 30.0
# How much a slow member reads at a time, and how long it then waits for each message in it.
SLOW_BYTES = 512
SLOW_SECONDS = 1.0


@dataclass(slots=True)
class Quick:
    """A member that keeps up.

    :ivar digest: digest of the ids of all messages that it saw, in order.
    :ivar is_gone: the server has dropped it.
    """

    connection: ChatConnection
    number: int
    received: int = 0
    digest: int = 0
    is_gone: bool = False


class ChatLoad:
    """See the module.

    :param rate: messages a second that the room gets.
    :param size: bytes of a message, about.
    :param picture_seconds: between two pictures; 0 for none.
    :param picture_size: bytes of a picture.
    :param warm_up: seconds at the beginning whose latencies do not count.
    """

    def __init__(
        self,
        url: str,
        *,
        members: int,
        slow: int,
        stalled: int,
        rate: float,
        size: int,
        seconds: float,
        warm_up: float,
        picture_seconds: float = 0,
        picture_size: int = 0,
    ) -> None:
        self.figures = Figures(kind="chat", clients=members, slow=slow, stalled=stalled)
        self._url = f"{url.rstrip('/')}/"
        self._rate = rate
        self._filler = "x" * max(size - 60, 0)
        self._seconds = seconds
        self._warm_up = warm_up
        self._picture_seconds = picture_seconds
        self._picture_size = picture_size
        # A room of its own, so that there is no history.
        self._room = f"load-{secrets.token_hex(4)}"
        self._members: list[Quick] = []
        self._texts = 0
        self._counting = anyio.Event()
        self._began = 0.0

    async def run(self) -> None:
        """Connect, send for the given time, wait until everything has arrived, and compare."""
        async with anyio.create_task_group() as tasks:
            limiter = anyio.CapacityLimiter(CONNECTING)
            for number in range(self.figures.clients):
                tasks.start_soon(self._member, number, limiter)
            for number in range(self.figures.slow + self.figures.stalled):
                tasks.start_soon(self._slow, number, number < self.figures.slow)
            await wait_until(self.figures.all_connected)
            self._began = time.monotonic()
            async with anyio.create_task_group() as senders:
                senders.start_soon(self._send)
                if self._picture_seconds:
                    senders.start_soon(self._send_pictures)
                await anyio.sleep(self._seconds)
                senders.cancel_scope.cancel()
            self.figures.seconds = time.monotonic() - self._began
            with anyio.move_on_after(ARRIVE_SECONDS):
                await wait_until(
                    lambda: all(m.is_gone or m.received >= self.figures.sent for m in self._members)
                )
            self._compare()
            tasks.cancel_scope.cancel()

    def _compare(self) -> None:
        sent = self.figures.sent
        self.figures.lost += sum(sent - member.received for member in self._members)
        whole = [member.digest for member in self._members if member.received == sent]
        # A member that saw another order than most members counts as out of order.
        commonest = max(map(whole.count, set(whole)), default=0)
        self.figures.disordered += len(whole) - commonest

    # --- sending ---

    async def _send(self) -> None:
        """Have one member after the other say something, at the rate."""
        due = time.monotonic()
        while True:
            text = json.dumps({"at": time.monotonic(), "number": self._texts, "x": self._filler})
            if (member := self._next_sender(self._texts)) is not None:
                await self._sent(member.connection.say(str(self._texts), text))
            self._texts += 1
            due += 1 / self._rate
            await anyio.sleep(max(due - time.monotonic(), 0))
            self.figures.seconds = time.monotonic() - self._began

    async def _send_pictures(self) -> None:
        content = PNG + bytes(self._picture_size)
        for number in itertools.count():
            await anyio.sleep(self._picture_seconds)
            name = json.dumps({"at": time.monotonic()})
            if (member := self._next_sender(number)) is not None:
                await self._sent(member.connection.post_picture(f"p{number}", name, content))

    def _next_sender(self, number: int) -> Quick | None:
        members = [member for member in self._members if not member.is_gone]
        return members[number % len(members)] if members else None

    async def _sent(self, sending: Awaitable[None]) -> None:
        """Send all of it or nothing, so that it is known what has to arrive."""
        with anyio.CancelScope(shield=True), suppress(*GONE, LocalProtocolError):
            await sending
            self.figures.sent += 1

    # --- receiving ---

    async def _member(self, number: int, limiter: anyio.CapacityLimiter) -> None:
        figures = self.figures
        parts = urlsplit(self._url)
        member: Quick | None = None
        try:
            async with limiter:
                stream = await anyio.connect_tcp(parts.hostname or "", parts.port or 80)
                connection = await self._open(stream, f"member{number}")
            async with stream:
                member = Quick(connection, number)
                last: dict[str, int] = {}
                async for received in connection.messages():
                    kind = received["type"]
                    if kind == "welcome":
                        figures.connected += 1
                        self._members.append(member)
                    elif kind in ("message", "image"):
                        self._received(member, received, last)
                    elif kind == "refused":
                        figures.lost += 1
        except (ChatError, OSError, *GONE):
            figures.failed += 1
        finally:
            if member is not None:
                member.is_gone = True

    def _received(self, member: Quick, fields: dict[str, Any], last: dict[str, int]) -> None:
        figures = self.figures
        # What is told of a picture is as large as a message; who looks at it fetches it.
        is_text = fields["type"] == "message"
        carried = json.loads(fields["text"] if is_text else fields["name"])
        member.received += 1
        member.digest = zlib.crc32(fields["id"].encode(), member.digest)
        if is_text:
            # Senders take turns, so the numbers of each sender grow.
            number = carried["number"]
            if number <= last.get(fields["from"], -1):
                figures.disordered += 1
            last[fields["from"]] = number
        now = time.monotonic()
        figures.deliveries += 1
        figures.delivered_bytes += len(fields.get("text", ""))
        if now - self._began > self._warm_up:
            figures.latencies.append(now - carried["at"])

    async def _open(self, stream: SocketStream, name: str) -> ChatConnection:
        return await open_connection(stream, url=self._url, room=self._room, name=name)

    async def _slow(self, number: int, reads: bool) -> None:
        """Be a member that reads a little now and then, or nothing."""
        name = f"{'slow' if reads else 'stalled'}{number}"
        what = "reset"
        try:
            async with await connect_slow(self._url) as stream:
                connection = await self._open(stream, name)
                if reads:
                    connection.receive_bytes = SLOW_BYTES
                    async for _ in connection.messages():
                        await anyio.sleep(SLOW_SECONDS)
                else:
                    await wait_reset(stream)
        except ChatError as exc:
            what = f"closed with {exc.code}" if exc.code is not None else "reset"
        except (OSError, *GONE):
            pass
        self.figures.drop(what)
