"""A log that several servers share, in Redis (by coredis).

Each room has a stream, in which its messages are kept, and a channel, on which its servers are told
of them.  One script does both, so every server sees the messages of a room in the stream's order.
It delivers all messages in that order, including its own.

When Redis cannot be reached, rooms go on within this server: a message is delivered here at once,
and its sender is told that it is *pending*.  It stays in a bounded backlog until Redis is back;
then it is appended, and only then acknowledged.  Messages of other servers that were missed are
read from the stream.  Servers put back from their history what Redis itself has lost.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anyio
from anyio import CancelScope
from anyio.abc import TaskStatus
from coredis import Redis
from coredis.exceptions import RedisError
from coredis.retry import NoRetryPolicy

from .log import Answer, FullError
from .messages import Post
from .metrics import ChatMetrics
from .presence import Presence
from .redis_streams import CHANNEL, RoomStreams, is_later
from .rooms import Kept, Room, text_frame

__all__ = ["RedisLog"]

log = logging.getLogger("examples.chat")

PRESENCE_CHANNEL = "zc_chat:presence"
BACKLOG = 10_000
BACKLOG_BYTES = 64 << 20
RETRY_SECONDS = 0.5
# How many messages are recognised when they are put back into a log.
SEEN = 10_000
# After this long without an answer, Redis counts as gone.
ANSWER_SECONDS = 5.0
IDLE_SECONDS = 5.0
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)

Append: TypeAlias = Callable[[], Awaitable[None]]


class Host(Protocol):
    """The chat whose log this is."""

    @property
    def rooms(self) -> Mapping[str, Room]: ...
    async def tell_shared(self, shared: bool) -> None: ...


@dataclass(slots=True)
class Waiting:
    """A message of this server that has not come back from Redis yet.

    :ivar delivered: it was delivered here already.
    :ivar tried: it may be in the log.
    :ivar acknowledged: it is in the log.
    """

    room: Room
    post: Post
    answer: Answer
    delivered: bool = False
    tried: bool = False
    acknowledged: bool = False


class RedisLog:
    """See the module."""

    def __init__(self, url: str, metrics: ChatMetrics) -> None:
        self.shared: bool | None = False
        self._url = url
        self._metrics = metrics
        self._origin = secrets.token_hex(8)
        self._number = 0
        self._host: Host | None = None
        # Set while Redis can be reached.
        self._streams: RoomStreams | None = None
        self._presence: Presence | None = None
        self._stopped = False
        self._scope = CancelScope()
        # By number, and so in order.
        self._waiting: dict[int, Waiting] = {}
        self._waiting_bytes = 0
        self._posted = anyio.Event()
        self._delivering = anyio.Lock()
        # The position of each room's latest message in its stream.
        self._positions: dict[str, str] = {}
        # The latest messages of the log that arrived here.
        self._seen: OrderedDict[str, None] = OrderedDict()
        # What arrives for rooms whose history is being read.
        self._arrived: dict[str, list[tuple[str, bytes]]] = {}

    def attach(self, host: Host) -> None:
        """Say whose log this is, before it runs."""
        self._host = host
        self._presence = Presence(self._origin, PRESENCE_CHANNEL, host.rooms)

    # --- what the chat calls ---

    def new_id(self) -> str:
        self._number += 1
        return f"{self._origin}-{self._number}"

    async def post(self, room: Room, post: Post, answer: Answer) -> None:
        size = len(post.header) + len(post.content or b"")
        if len(self._waiting) >= BACKLOG or self._waiting_bytes + size > BACKLOG_BYTES:
            raise FullError
        self._waiting[_number(post.id)] = Waiting(room, post, answer)
        self._waiting_bytes += size
        self._metrics.backlog.set(len(self._waiting))
        if self.shared:
            self._posted.set()
        else:
            await self._deliver_waiting()

    async def open(self, room: Room) -> None:
        assert self._host is not None
        assert self._presence is not None
        self._presence.open(room)
        # Positions of rooms that made place for others are not needed any more.
        known = self._positions.keys() & self._host.rooms.keys()
        self._positions = {name: self._positions[name] for name in known}
        streams = self._streams
        if streams is None:
            return
        arrived = self._arrived[room.name] = []
        try:
            for position, header in await streams.latest(room.name):
                ident = json.loads(header)["id"]
                room.keep([Kept(ident, position, header, text_frame(header))])
                self._note_seen(ident)
                self._positions[room.name] = position
            while arrived:
                await self._arrive(room, *arrived.pop(0))
        except RedisError:
            # The connection is lost; when it is back, the room is filled.
            log.warning("the history of %s cannot be read", room.name)
        finally:
            del self._arrived[room.name]

    async def picture(self, ident: str) -> bytes | None:
        if self._streams is None:
            return None
        try:
            return await self._streams.picture(ident)
        except RedisError:
            return None

    async def flush(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while self._waiting:  # noqa: ASYNC110 - once, when the server stops
                await anyio.sleep(0.01)

    # --- the connection ---

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection; started when the first attempt has succeeded or failed."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._keep_connected)
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                self._stopped = True
                self._scope.cancel()

    async def _keep_connected(self, *, task_status: TaskStatus[None]) -> None:
        started = False
        # coredis has to leave its subscription before its connections: if both were cancelled at
        # once, it would write to a closed connection.
        with CancelScope(shield=True):
            while not self._stopped:
                try:
                    async with self._connected() as messages:
                        if not started:
                            started = True
                            task_status.started()
                        with self._stoppable():
                            async for message in messages:
                                await self._received(message)
                except* (RedisError, OSError, TimeoutError, *GONE) as exc:
                    if self.shared or not started:
                        log.warning("Redis cannot be reached: %s", str(_first(exc)))
                await self._lost()
                if not started:
                    started = True
                    task_status.started()
                with self._stoppable():
                    await anyio.sleep(RETRY_SECONDS)

    def _stoppable(self) -> CancelScope:
        """Return a scope that is cancelled when the log is to be left."""
        self._scope = CancelScope()
        if self._stopped:
            self._scope.cancel()
        return self._scope

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """Connect, and catch up with what happened meanwhile."""
        assert self._host is not None
        assert self._presence is not None
        async with (
            Redis.from_url(
                self._url,
                decode_responses=False,
                retry_policy=NoRetryPolicy(),
                stream_timeout=ANSWER_SECONDS,
            ) as client,
            # It does not reconnect by itself, which would silently lose messages.
            client.pubsub(
                retry_policy=None,
                ignore_subscribe_messages=True,
                patterns=[f"{CHANNEL}*"],
                channels=[self._presence.channel],
                max_idle_seconds=IDLE_SECONDS,
            ) as messages,
            anyio.create_task_group() as tasks,
        ):
            streams = RoomStreams(client, self._origin)
            caught_up: set[Room] = set()
            while missing := set(self._host.rooms.values()) - caught_up:
                for room in missing:
                    await self._catch_up(streams, room)
                caught_up |= missing
            # Rooms that are opened from now on read their history themselves.
            self._streams = streams
            append = await self._append_waiting(streams)
            self.shared = True
            tasks.start_soon(self._append_posted, append)
            tasks.start_soon(self._presence.tell, client)
            await self._host.tell_shared(True)
            yield messages
            tasks.cancel_scope.cancel()

    async def _lost(self) -> None:
        """Go on within this server."""
        assert self._host is not None
        assert self._presence is not None
        was_shared, self.shared, self._streams = self.shared, False, None
        self._presence.forget_all()
        await self._deliver_waiting()
        if was_shared:
            await self._host.tell_shared(False)

    async def _catch_up(self, streams: RoomStreams, room: Room) -> None:
        """Put back what the stream has lost, and deliver what was missed."""
        if lost := await streams.restore(room.name, room.history):
            log.warning("put %s messages back into the log of %s", lost, room.name)
        latest = self._positions.get(room.name)
        if latest is None:
            missed = await streams.latest(room.name)
        else:
            missed = await streams.after(room.name, latest)
        for position, header in missed:
            await self._arrive(room, position, header)

    # --- messages of this server ---

    async def _append_waiting(self, streams: RoomStreams) -> Append:
        """Append what waits; return a function that appends what is posted later."""
        appended = 0

        async def append() -> None:
            nonlocal appended
            for number, waiting in list(self._waiting.items()):
                if number > appended:
                    again, waiting.tried = waiting.tried, True
                    await streams.append(number, waiting.room.name, waiting.post, again=again)
                    appended = number
                    _acknowledge(waiting)

        await append()
        return append

    async def _append_posted(self, append: Append) -> None:
        while True:
            self._posted = anyio.Event()
            await append()
            await self._posted.wait()

    async def _deliver_waiting(self) -> None:
        """Deliver within this server what has not come back from Redis."""
        # Shielded, so that accepted messages are delivered, in order, whoever is being cancelled.
        with CancelScope(shield=True):
            async with self._delivering:
                for waiting in list(self._waiting.values()):
                    if not waiting.delivered:
                        waiting.delivered = True
                        await waiting.room.deliver(waiting.post)
                        if not waiting.acknowledged:
                            waiting.answer("pending")

    # --- messages of all servers ---

    async def _received(self, message: Any) -> None:
        assert self._host is not None
        assert self._presence is not None
        channel = message["channel"].decode()
        if channel == self._presence.channel:
            self._presence.received(message["data"])
            return
        name = channel.removeprefix(CHANNEL)
        position, _, header = message["data"].partition(b" ")
        if name in self._arrived:
            self._arrived[name].append((position.decode(), header))
        elif (room := self._host.rooms.get(name)) is not None and self._streams is not None:
            await self._arrive(room, position.decode(), header)

    async def _arrive(self, room: Room, position: str, header: bytes) -> None:
        """Deliver a message of the stream, unless it was delivered already.

        It may come late, if only another server had it when Redis lost it; or again, if Redis lost
        it before it had come back to its own server, which then has appended it anew.
        """
        latest = self._positions.get(room.name)
        if latest is None or is_later(position, latest):
            self._positions[room.name] = position
        ident = json.loads(header)["id"]
        waiting = None
        if ident.startswith(f"{self._origin}-"):
            waiting = self._waiting.pop(_number(ident), None)
        known = ident in self._seen or (waiting is not None and waiting.delivered)
        self._note_seen(ident)
        if known:
            for kept in room.history:
                if kept.id == ident:
                    kept.position = position
        else:
            await room.deliver(Post(ident, header) if waiting is None else waiting.post, position)
        if waiting is not None:
            self._waiting_bytes -= len(header) + len(waiting.post.content or b"")
            self._metrics.backlog.set(len(self._waiting))
            _acknowledge(waiting)

    def _note_seen(self, ident: str) -> None:
        self._seen[ident] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)


def _acknowledge(waiting: Waiting) -> None:
    if not waiting.acknowledged:
        waiting.acknowledged = True
        waiting.answer("ack")


def _number(ident: str) -> int:
    return int(ident.rpartition("-")[2])


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
