"""The chat behind HTTP: members connect, talk, and leave or are dropped."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import anyio
from anyio.abc import TaskGroup, TaskStatus
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import AcceptConnection, Ping, Pong, RejectConnection
from wsproto.utilities import RemoteProtocolError

import zc_anyio

from ..web import Exchange, HTTPError, Request, abort
from .limits import ChatLimits
from .log import FullError, Log
from .members import DroppedError, Member
from .messages import (
    IMAGE_BYTES,
    PICTURE_FRAME_BYTES,
    TEXT_CHARACTERS,
    TEXT_FRAME_BYTES,
    Fetch,
    MalformedError,
    Picture,
    RefusedError,
    Say,
    clean_name,
    clean_room,
    encode,
    join_picture,
    parse_picture,
    parse_text,
    post_picture,
    post_text,
)
from .metrics import ChatMetrics
from .queues import GONE, open_queue
from .rooms import Pictures, Room
from .websocket import (
    PING,
    ClosedError,
    Incoming,
    Message,
    TooBigError,
    binary_frame,
    close_frame,
    pong_frame,
    text_frame,
)

__all__ = ["Chat"]

# Little, since parsing a flood of empty frames in it holds everybody up.
RECEIVE = 16 << 10
RECEIVE_UPLOAD = 256 << 10
# An incomplete message of which more than this has come is an upload; only a few may go on at once.
UPLOAD = 2 * TEXT_FRAME_BYTES
SWEEP_SECONDS = 1.0
STOP_POLL_SECONDS = 0.02
POLICY_VIOLATION, TOO_BIG, GOING_AWAY = 1008, 1009, 1001


class Chat:
    """The chat of one process.

    :param ring: the ring that sends; ``None`` for anyio's own streams.
    :param server: what members are told about the server.
    :param origins: origins of pages that may connect, besides the server's own.
    """

    def __init__(
        self,
        log: Log,
        *,
        ring: zc_anyio.Ring | None,
        metrics: ChatMetrics,
        limits: ChatLimits,
        server: dict[str, str],
        origins: frozenset[str] = frozenset(),
    ) -> None:
        self.rooms: dict[str, Room] = {}
        self._log = log
        self._ring = ring
        self._metrics = metrics
        self._limits = limits
        self._server = server
        self._origins = origins
        self._pictures = Pictures(limits.picture_memory)
        self._uploads = anyio.Semaphore(limits.uploads)
        self._opening = anyio.Lock()
        self._tasks: TaskGroup | None = None

    async def run(
        self, stopping: anyio.Event, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until ``stopping`` is set, then drop all members and return.

        If cancelled, it returns at once.
        """
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._sweep)
            task_status.started()
            await stopping.wait()
            await self._log.flush(self._limits.close_seconds)
            while members := [m for room in self.rooms.values() for m in room.members.values()]:
                for member in members:
                    member.drop(GOING_AWAY, "the server is going away")
                await anyio.sleep(STOP_POLL_SECONDS)
            self._tasks.cancel_scope.cancel()

    async def tell_all(self, frame: bytes) -> None:
        """Send a frame to every member of every room."""
        for room in list(self.rooms.values()):
            await room.broadcast(frame)

    async def tell_shared(self, shared: bool) -> None:
        """Tell every member whether other servers can be reached."""
        self._metrics.shared.set(shared)
        await self.tell_all(text_frame(encode(type="status", shared=shared)))

    async def _sweep(self) -> None:
        """Drop members that are too slow or silent, and ping all of them now and then."""
        pinged = time.monotonic()
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            members = [member for room in self.rooms.values() for member in room.members.values()]
            waiting = [member.drop_if_late(now) for member in members]
            self._metrics.members.set(len(members))
            self._metrics.waiting.set(sum(waiting))
            self._metrics.most_waiting.set(max(waiting, default=0))
            if now - pinged >= self._limits.ping_seconds:
                pinged = now
                await self.tell_all(PING)

    # --- connections ---

    async def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer ``/chat?room=…&name=…``, which has to be a WebSocket handshake."""
        request.allow("GET")
        self._check_origin(request)
        connection, accepted = _accept(request)
        query = parse_qs(request.query, errors="replace")
        name = clean_name(query.get("name", [""])[0]) or "guest"
        room = await self._room(clean_room(query.get("room", [""])[0]) or "lobby")
        stream, received = await exchange.take_over()
        async with open_queue(stream, ring=self._ring, limit=self._limits.queue_bytes) as queue:
            queue.send(accepted)
            member = Member(name, queue, self._limits)
            await room.join(member, self._about())
            try:
                ending = await self._serve(room, member, connection, received)
            finally:
                room.leave(member)
            if ending is not None:
                await self._close(member, ending)

    def _check_origin(self, request: Request) -> None:
        """Refuse pages of other sites, which would act in the name of their visitors."""
        origin = request.header("origin")
        if origin is None or origin in self._origins:
            return
        if urlsplit(origin).netloc != request.header("host"):
            raise HTTPError(403, "Pages of other sites may not connect")

    def _about(self) -> dict[str, object]:
        limits = {"text": TEXT_CHARACTERS, "image": IMAGE_BYTES}
        return {"limits": limits, "server": self._server, "shared": self._log.shared}

    async def _room(self, name: str) -> Room:
        """Return a room, opening it if needed; the room that is empty longest makes place."""
        async with self._opening:
            room = self.rooms.get(name)
            if room is None:
                if len(self.rooms) >= self._limits.rooms:
                    empty = next((r for r in self.rooms.values() if not r.members), None)
                    if empty is None:
                        raise HTTPError(503, "There are too many rooms")
                    empty.close()
                    del self.rooms[empty.name]
                room = Room(
                    name, limits=self._limits, pictures=self._pictures, metrics=self._metrics
                )
                assert self._tasks is not None
                await self._tasks.start(room.run, self._ring)
                self.rooms[name] = room
                await self._log.open(room)
                self._metrics.rooms.set(len(self.rooms))
            return room

    async def _serve(
        self, room: Room, member: Member, connection: Connection, received: bytes
    ) -> DroppedError | None:
        """Take what a member sends until its connection has to end; ``None`` if it is gone."""
        incoming = Incoming(
            connection, text_bytes=TEXT_FRAME_BYTES, binary_bytes=PICTURE_FRAME_BYTES
        )
        try:
            with member.scope:
                while True:
                    await self._take(room, member, incoming, received)
                    if incoming.partial > UPLOAD:
                        await self._receive_upload(room, member, incoming)
                    received = await member.queue.stream.receive(RECEIVE)
        except (*GONE, anyio.EndOfStream):
            return None
        except DroppedError as ending:
            return ending
        return member.ending

    async def _receive_upload(self, room: Room, member: Member, incoming: Incoming) -> None:
        """Receive the rest of a large message, when it is its turn."""
        async with self._uploads:
            try:
                with anyio.fail_after(self._limits.upload_seconds):
                    while incoming.partial > UPLOAD:
                        received = await member.queue.stream.receive(RECEIVE_UPLOAD)
                        await self._take(room, member, incoming, received)
            except TimeoutError:
                raise DroppedError(POLICY_VIOLATION, "the message took too long") from None

    async def _close(self, member: Member, ending: DroppedError) -> None:
        """Send a close frame after all that waits, and wait until the peer has closed as well.

        A member that does not take the frame in time is reset, so that nothing is kept for it.
        """
        if not ending.by_peer:
            self._metrics.dropped.labels(str(ending.code)).inc()
        stream = member.queue.stream
        member.queue.send(close_frame(ending.code, ending.reason))
        with anyio.move_on_after(self._limits.close_seconds) as limit:
            await member.queue.finish()
            if ending.by_peer:
                return
            with suppress(*GONE, anyio.EndOfStream, OSError):
                await stream.send_eof()
                while True:
                    await stream.receive(RECEIVE)
        if limit.cancelled_caught:
            self._metrics.reset.inc()
            await abort(stream)

    # --- messages ---

    async def _take(self, room: Room, member: Member, incoming: Incoming, received: bytes) -> None:
        """Take in what was received.

        :raises DroppedError: the member has to be dropped because of it.
        """
        member.heard = time.monotonic()
        before = incoming.frames
        try:
            for message in incoming.feed(received):
                await self._handle(room, member, message)
        except TooBigError:
            raise DroppedError(TOO_BIG, "the message is too large") from None
        except MalformedError as exc:
            raise DroppedError(POLICY_VIOLATION, f"not a message of this chat: {exc}") from None
        except ClosedError as closed:
            raise DroppedError(closed.code, closed.reason, by_peer=not closed.violation) from None
        if not member.frames.take(incoming.frames - before):
            raise DroppedError(POLICY_VIOLATION, "flooding")

    async def _handle(self, room: Room, member: Member, message: Message) -> None:
        match message:
            case Ping():
                member.tell(pong_frame(bytes(message.payload)))
                return
            case Pong():
                return
        try:
            request = parse_text(message) if isinstance(message, str) else parse_picture(message)
            if isinstance(request, Fetch):
                await self._fetch(room, member, request)
            else:
                await self._post(room, member, request)
            member.strikes = 0
        except RefusedError as refused:
            member.strikes += 1
            if member.strikes > self._limits.strikes:
                raise DroppedError(POLICY_VIOLATION, "flooding") from None
            self._metrics.refused.inc()
            refusal = encode(type="refused", nonce=refused.nonce, reason=refused.reason)
            member.tell(text_frame(refusal))

    async def _post(self, room: Room, member: Member, request: Say | Picture) -> None:
        if not member.messages.take():
            raise RefusedError(request.nonce, "you are sending too fast")
        if isinstance(request, Picture) and not member.pictures.take(len(request.content)):
            raise RefusedError(request.nonce, "you are sending too many pictures")
        ident = self._log.new_id()
        at = time.time_ns() // 1_000_000
        if isinstance(request, Say):
            post = post_text(ident, at, member.name, request)
        else:
            post = post_picture(ident, at, member.name, request)
        try:
            await self._log.post(room, post, partial(_answer, member, request.nonce, ident))
        except FullError:
            raise RefusedError(
                request.nonce, "too many messages wait for the connection to other servers"
            ) from None

    async def _fetch(self, room: Room, member: Member, request: Fetch) -> None:
        if not member.messages.take():
            raise RefusedError(request.id, "you are asking too fast")
        frame = None
        # Only pictures that this room has seen: a known id must not open other rooms.
        if any(kept.id == request.id for kept in room.history):
            frame = self._pictures.get(request.id)
            if frame is None and (post := await self._log.fetch(room, request.id)) is not None:
                frame = binary_frame(join_picture(post.header, post.content or b""))
                self._pictures.put(post.id, frame)
        member.tell(frame or text_frame(encode(type="gone", id=request.id)))


def _answer(member: Member, nonce: str, ident: str, kind: Literal["pending", "ack"]) -> None:
    member.tell(text_frame(encode(type=kind, nonce=nonce, id=ident)))


def _accept(request: Request) -> tuple[Connection, bytes]:
    """Accept a WebSocket handshake, without extensions.

    :return: the connection, and the answer to the handshake.
    :raises HTTPError: it is not a handshake.
    """
    handshake = WSConnection(ConnectionType.SERVER)
    headers: Any = list(request.event.headers)
    try:
        handshake.initiate_upgrade_connection(headers, request.event.target)
    except RemoteProtocolError as exc:
        hint = exc.event_hint
        status = hint.status_code if isinstance(hint, RejectConnection) else 400
        raise HTTPError(status, str(exc), [("sec-websocket-version", "13")]) from None
    accepted = handshake.send(AcceptConnection())
    assert handshake.connection is not None
    return handshake.connection, accepted
