"""What is kept in Redis: a stream for each room, and pictures; two scripts change them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from coredis import Redis
from coredis.commands.script import Script

from .messages import Post
from .rooms import Kept

__all__ = ["CHANNEL", "SCRIPTS", "Entry", "RoomStreams", "is_later"]

PREFIX = "zc_chat"
# Followed by the name of a room.
CHANNEL = f"{PREFIX}:room:"
# More than the history, so that a server that was away for a while misses nothing.
LOG_LENGTH = 500
HISTORY_LENGTH = 100
KEEP_SECONDS = 30 * 24 * 3600
SCRIPTS = Path(__file__).parent

# Position and header of a message.
Entry: TypeAlias = tuple[str, bytes]


class RoomStreams:
    """The streams, over one connection; every method raises coredis' errors.

    :param origin: names the server that appends.
    """

    def __init__(self, client: Redis[bytes], origin: str) -> None:
        self._client = client
        self._origin = origin
        self._append: Script[bytes] = _script(client, "append.lua")
        self._restore: Script[bytes] = _script(client, "restore.lua")

    async def append(self, number: int, room: str, post: Post, *, again: bool) -> None:
        """Append a message, keep its picture, and tell all servers; only once, if called again.

        :param again: it was called before, and another server may put the message back into a log
            that has lost it.
        :param number: number of the message, larger than those of this server's earlier ones.
        """
        await self._append(
            [_stream(room), f"{PREFIX}:latest:{self._origin}", _picture(post.id)],
            [
                *(number, post.header, post.content or b"", LOG_LENGTH, KEEP_SECONDS),
                *(CHANNEL + room, post.id if again else ""),
            ],
        )

    async def restore(self, room: str, history: Iterable[Kept]) -> int:
        """Put back what a stream has lost, tell all servers; return how many it was."""
        known: list[Any] = []
        for kept in history:
            if kept.position is not None:
                known += [kept.position, kept.header]
        if not known:
            return 0
        lost: Any = await self._restore(
            [_stream(room)], [LOG_LENGTH, KEEP_SECONDS, CHANNEL + room, *known]
        )
        return int(lost)

    async def latest(self, room: str) -> list[Entry]:
        """Return the latest messages, oldest first, which are a room's history."""
        return _entries(await self._client.xrevrange(_stream(room), count=HISTORY_LENGTH))[::-1]

    async def after(self, room: str, position: str) -> list[Entry]:
        """Return the messages after a position."""
        return _entries(await self._client.xrange(_stream(room), start=f"({position}"))

    async def picture(self, ident: str) -> bytes | None:
        """Return a picture, if it is kept."""
        return await self._client.get(_picture(ident))


def is_later(position: str, than: str) -> bool:
    """Whether a position in a stream is after another."""
    return _place(position) > _place(than)


def _script(client: Redis[bytes], name: str) -> Script[bytes]:
    return client.register_script((SCRIPTS / name).read_text(encoding="utf-8"))


def _stream(room: str) -> str:
    return f"{PREFIX}:log:{room}"


def _picture(ident: str) -> str:
    return f"{PREFIX}:picture:{ident}"


def _place(position: str) -> tuple[int, int]:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence)


def _entries(found: Any) -> list[Entry]:
    return [(entry.identifier.decode(), entry.field_values[b"header"]) for entry in found]
