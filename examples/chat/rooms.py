"""Rooms: members, the order of messages, history, presence."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import anyio
from anyio import CancelScope
from anyio.abc import TaskStatus

from zc_anyio.asgi import websocket_frame

from .limits import ChatLimits
from .members import Member
from .messages import Post, encode
from .metrics import ChatMetrics
from .queues import Broadcaster, open_broadcaster

__all__ = ["Kept", "Pictures", "Room", "text_frame"]

# Members who come and go within this time are announced together.
PRESENCE_SECONDS = 0.3


class Pictures:
    """The pictures that are kept; those unused for longest are dropped first.

    :param limit: bytes of all of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def put(self, ident: str, content: bytes) -> None:
        """Keep a picture."""
        self._size += len(content) - len(self._kept.get(ident, b""))
        self._kept[ident] = content
        while self._size > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)

    def get(self, ident: str) -> bytes | None:
        """Return a picture, if it is still there."""
        content = self._kept.get(ident)
        if content is not None:
            self._kept.move_to_end(ident)
        return content


def text_frame(data: bytes) -> bytes:
    """Return a JSON object as a frame, the same for all members."""
    return websocket_frame(data.decode())


@dataclass(slots=True)
class Kept:
    """A message of the history.

    :ivar position: its position in the log that servers share, once that is known.
    :ivar frame: the frame that members get.
    """

    id: str
    position: str | None
    header: bytes
    frame: bytes

    @property
    def preview(self) -> int | None:
        """Bytes of a picture's preview, 0 if it has none; ``None`` for a text."""
        fields = json.loads(self.header)
        return int(fields.get("preview", 0)) if fields["type"] == "image" else None


class Room:
    """One room on this server.

    Everything that members get passes the room's lock, so all of them see it in the same order,
    including those who join.

    :ivar members: by name.
    :ivar elsewhere: the names of those who are in this room on other servers, by server.
    :ivar history: the latest messages, oldest first.
    """

    def __init__(
        self, name: str, *, limits: ChatLimits, pictures: Pictures, metrics: ChatMetrics
    ) -> None:
        self.name = name
        self.members: dict[str, Member] = {}
        self.elsewhere: dict[str, list[str]] = {}
        self.history: deque[Kept] = deque()
        self._history_bytes = 0
        self._limits = limits
        self._pictures = pictures
        self._metrics = metrics
        self._lock = anyio.Lock()
        self._broadcaster: Broadcaster | None = None
        # Whom members know of, by a presence message or by their welcome.
        self._announced: set[str] = set()
        self._welcomed: set[str] = set()
        self._changed = anyio.Event()
        self._scope = CancelScope()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the room open, and tell who comes and goes."""
        with self._scope:
            async with open_broadcaster(limit=self._limits.queue_bytes) as self._broadcaster:
                task_status.started()
                while True:
                    await self._changed.wait()
                    self._changed = anyio.Event()
                    await self._tell_presence()
                    await anyio.sleep(PRESENCE_SECONDS)

    def close(self) -> None:
        """End :meth:`run`."""
        self._scope.cancel()

    # --- messages ---

    async def deliver(self, post: Post, position: str | None = None) -> None:
        """Send a message to all members, and keep it."""
        kept = Kept(post.id, position, post.header, text_frame(post.header))
        if post.content is not None:
            self._pictures.put(post.id, post.content)
        self._metrics.messages.labels("text" if kept.preview is None else "picture").inc()
        # Shielded, since a message in the history has to reach the members.
        with CancelScope(shield=True):
            async with self._lock:
                self.keep([kept])
                await self._broadcast(kept.frame)

    def keep(self, messages: Iterable[Kept]) -> None:
        """Put messages at the end of the history, without telling anybody."""
        for kept in messages:
            self.history.append(kept)
            self._history_bytes += len(kept.frame)
        while (
            len(self.history) > self._limits.history
            or self._history_bytes > self._limits.history_bytes
        ):
            self._history_bytes -= len(self.history.popleft().frame)

    async def broadcast(self, frame: bytes) -> None:
        """Send a frame to all members, and do not keep it."""
        async with self._lock:
            await self._broadcast(frame)

    async def _broadcast(self, frame: bytes) -> None:
        assert self._broadcaster is not None
        queues = [member.queue for member in self.members.values() if not member.drop_if_over()]
        if queues:
            await self._broadcaster.send(queues, frame)
            self._metrics.deliveries.inc(len(queues))

    # --- members ---

    async def join(self, member: Member, server: dict[str, object]) -> None:
        """Take in a member: it gets a welcome, the history, and everything after that."""
        async with self._lock:
            member.name = self._free_name(member.name)
            self.members[member.name] = member
            names = self.names()
            self._welcomed |= names
            welcome = encode(
                type="welcome",
                room=self.name,
                id=member.id,
                name=member.name,
                token=member.token,
                members=sorted(names),
                **server,
            )
            member.tell(text_frame(welcome), *(kept.frame for kept in self.history))
        self._changed.set()

    def leave(self, member: Member) -> None:
        """Let a member go."""
        if self.members.get(member.name) is member:
            del self.members[member.name]
            self._changed.set()

    def _free_name(self, wanted: str) -> str:
        taken = self.names()
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}-{number}"
        return name

    # --- presence ---

    def names(self) -> set[str]:
        """Return who is here, on whichever server."""
        return set(self.members).union(*self.elsewhere.values())

    def set_elsewhere(self, server: str, names: list[str]) -> None:
        """Note who is in this room on another server."""
        if names:
            self.elsewhere[server] = names
        else:
            self.elsewhere.pop(server, None)
        self._changed.set()

    async def _tell_presence(self) -> None:
        now = self.names()
        joined, left = now - self._announced, (self._announced | self._welcomed) - now
        self._announced, self._welcomed = now, set()
        if joined or left:
            presence = encode(type="presence", joined=sorted(joined), left=sorted(left))
            await self.broadcast(text_frame(presence))
