"""The log of messages: where their order is decided and where they are kept.

A message is acknowledged to its sender when it is in the log.  :class:`MemoryLog` is for a single
server; see ``redis_log`` for a log that several servers share.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import anyio
from anyio.abc import TaskStatus

from .messages import Post
from .rooms import Room

__all__ = ["Answer", "FullError", "Log", "MemoryLog"]

# Called with "pending" when a message was delivered only here, and with "ack" when it is in the
# log.
Answer: TypeAlias = Callable[[Literal["pending", "ack"]], None]


class FullError(Exception):
    """The log cannot be reached, and too much waits for it already."""


class Log(Protocol):
    """What a chat server needs of a log.

    :ivar shared: whether other servers can be reached; ``None`` if there are none.
    """

    shared: bool | None

    def new_id(self) -> str:
        """Return the id of the message that is posted next."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection to the other servers, until cancelled."""

    async def open(self, room: Room) -> None:
        """Fill a new room with its history."""

    async def post(self, room: Room, post: Post, answer: Answer) -> None:
        """Take a message; it is delivered to the room, and answered, now or later.

        :raises FullError: it is not taken.
        """

    async def picture(self, ident: str) -> bytes | None:
        """Return a picture that this server does not have, if the shared log has it."""

    async def flush(self, seconds: float) -> None:
        """Wait until everything accepted is in the log, for ``seconds`` at most."""


class MemoryLog:
    """The log of a single process: messages have the order in which rooms deliver them."""

    shared: bool | None = None

    def __init__(self) -> None:
        self._origin = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def new_id(self) -> str:
        return f"{self._origin}-{next(self._numbers)}"

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def open(self, room: Room) -> None:
        """Do nothing: the only history is the room's own."""

    async def post(self, room: Room, post: Post, answer: Answer) -> None:
        await room.deliver(post)
        answer("ack")

    async def picture(self, ident: str) -> bytes | None:  # noqa: ARG002
        return None

    async def flush(self, seconds: float) -> None:
        """Do nothing: no message waits."""
