"""A member: one connection in one room."""

from __future__ import annotations

import secrets
import time

from anyio import CancelScope

from .flood import Allowance
from .limits import ChatLimits
from .queues import MemberQueue

__all__ = ["SLOW", "DroppedError", "Member"]

# RFC 6455 and its registry: try again later.
SLOW = 1013


class DroppedError(Exception):
    """A member's connection has to end, with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Member:
    """A connection in a room.

    :ivar id: unlike any other's, on whichever server.
    :ivar name: unlike any other's in the room, as far as servers know of each other.
    :ivar token: known to this member alone.
    :ivar queue: frames on their way to it.
    :ivar ending: why it is being dropped, if it is.
    """

    def __init__(self, name: str, queue: MemberQueue, limits: ChatLimits) -> None:
        self.id = secrets.token_hex(8)
        self.token = secrets.token_urlsafe(16)
        self.name = name
        self.queue = queue
        self.ending: DroppedError | None = None
        self.scope = CancelScope()
        self.messages = Allowance(limits.message_rate, limits.message_burst)
        self.pictures = Allowance(limits.picture_rate, limits.picture_burst)
        self.strikes = 0
        self._limits = limits
        # How much was queued at a point in time; when all of that is taken, the mark is set anew.
        self._mark = 0
        self._marked = time.monotonic()

    def drop(self, code: int, reason: str) -> None:
        """End its connection, by a close frame after what is queued for it."""
        if self.ending is None:
            self.ending = DroppedError(code, reason)
            self.scope.cancel()

    def tell(self, *frames: bytes) -> None:
        """Send frames to this member alone."""
        if self.ending is None and not self.drop_if_over():
            self.queue.send(*frames)

    def drop_if_over(self) -> bool:
        """Drop the member if too much waits for it; return whether it is being dropped."""
        if self.ending is None and self.queue.is_over(self._limits.queue_bytes):
            self.drop(SLOW, "too slow: too much waits for you")
        return self.ending is not None

    def drop_if_late(self, now: float) -> int:
        """Drop the member if something waits for too long.

        :return: bytes that wait for it.
        """
        waiting = self.queue.waiting()
        if self.queue.accepted - waiting >= self._mark:
            self._mark = self.queue.accepted
            self._marked = now
        elif now - self._marked > self._limits.lag_seconds:
            self.drop(SLOW, "too slow: messages have waited too long for you")
        return waiting
