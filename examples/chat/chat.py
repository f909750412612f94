"""The chat behind HTTP: members connect, talk, and leave or are dropped."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup, TaskStatus
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from zc_anyio.asgi import ClientDisconnectedError

from .flood import Allowance
from .limits import ChatLimits
from .log import FullError, Log
from .members import DroppedError, Member
from .messages import (
    BEAT,
    IMAGE_BYTES,
    TEXT_CHARACTERS,
    MalformedError,
    Picture,
    RefusedError,
    Say,
    clean_name,
    clean_room,
    encode,
    parse,
    post_picture,
    post_text,
)
from .metrics import ChatMetrics
from .queues import open_queue
from .rooms import Pictures, Room, text_frame

__all__ = ["LOBBY", "Chat", "address_of"]

log = logging.getLogger("examples.chat")

LOBBY = "lobby"
SWEEP_SECONDS = 1.0
STOP_POLL_SECONDS = 0.02
# Addresses whose opening of rooms is remembered.
ADDRESSES = 10_000
POLICY_VIOLATION, GOING_AWAY = 1008, 1001


class Chat:
    """The chat of one process.

    :param server: what members are told about the server.
    :param origins: origins of pages that may connect, besides the server's own.
    :ivar rooms: those that are open, by name.
    :ivar pictures: what is kept of pictures here.
    :ivar posting: by token: who may post pictures, and where.
    """

    def __init__(
        self,
        log: Log,
        *,
        metrics: ChatMetrics,
        limits: ChatLimits,
        server: dict[str, str],
        origins: frozenset[str] = frozenset(),
    ) -> None:
        self.rooms: dict[str, Room] = {}
        self.log = log
        self._metrics = metrics
        self.limits = limits
        self._server = server
        self._origins = origins
        self.pictures = Pictures(limits.picture_memory)
        self._opening = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._stopping = False
        self.posting: dict[str, tuple[Room, Member]] = {}
        # By address: members, and how many rooms it may open.
        self._members: Counter[str] = Counter()
        self._openings: dict[str, Allowance] = {}

    async def run(
        self, stop: anyio.Event, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until ``stop`` is set, then drop all members and return.

        If cancelled, it returns at once.
        """
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._sweep)
            task_status.started()
            await stop.wait()
            self._stopping = True
            await self.log.flush(self.limits.close_seconds)
            while members := [m for room in self.rooms.values() for m in room.members.values()]:
                for member in members:
                    member.drop(GOING_AWAY, "the server is going away")
                await anyio.sleep(STOP_POLL_SECONDS)
            self._tasks.cancel_scope.cancel()

    async def tell_shared(self, shared: bool) -> None:
        """Tell every member whether other servers can be reached."""
        self._metrics.shared.set(shared)
        frame = text_frame(encode(type="status", shared=shared))
        for room in list(self.rooms.values()):
            await room.broadcast(frame)

    async def _sweep(self) -> None:
        """Drop members that are too slow."""
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            members = [member for room in self.rooms.values() for member in room.members.values()]
            waiting = [member.drop_if_late(now) for member in members]
            self._metrics.members.set(len(members))
            self._metrics.waiting.set(sum(waiting))
            self._metrics.most_waiting.set(max(waiting, default=0))

    # --- connections ---

    async def talk(self, websocket: WebSocket) -> None:
        """Serve the WebSocket ``/chat?room=…&name=…``."""
        address = address_of(websocket)
        try:
            self.check_origin(websocket)
            if self._members[address] >= self.limits.address_members:
                raise HTTPException(429, "There are too many members from your address")
            room = await self._room(websocket.query_params.get("room", ""), address)
        except HTTPException as refused:
            log.warning("refused %s: %s", address, refused.detail)
            answer = PlainTextResponse(refused.detail, refused.status_code)
            await websocket.send_denial_response(answer)
            return
        self._members[address] += 1
        try:
            await websocket.accept()
            async with open_queue(websocket, limit=self.limits.queue_bytes) as queue:
                name = clean_name(websocket.query_params.get("name", "")) or "guest"
                await self._serve(websocket, room, Member(name, queue, self.limits))
        finally:
            self._members[address] -= 1
            self._members += Counter()  # those with none are forgotten

    def check_origin(self, connection: HTTPConnection) -> None:
        """Refuse pages of other sites, which would act in the name of their visitors.

        :raises HTTPException: 403.
        """
        origin = connection.headers.get("origin")
        if origin is None or origin in self._origins:
            return
        host = connection.headers.get("host")
        if urlsplit(origin).netloc != host:
            # A proxy that does not pass the Host header on looks the same.
            raise HTTPException(403, f"pages of {origin} may not connect to {host}, see --origin")

    def _about(self) -> dict[str, object]:
        limits = {"text": TEXT_CHARACTERS, "image": IMAGE_BYTES}
        return {"limits": limits, "server": self._server, "shared": self.log.shared}

    async def _room(self, asked: str, address: str) -> Room:
        """Return a room, opening it if needed; the room that is empty longest makes place.

        :raises HTTPException: 400, this is not the name of a room; 429 or 503, it cannot be opened.
        """
        name = clean_room(asked) or LOBBY
        if asked.strip() and name != asked.strip().lower():
            raise HTTPException(400, "The names of rooms have letters, digits and hyphens only")
        if self._stopping:
            raise HTTPException(503, "the server is going away")
        async with self._opening:
            room = self.rooms.get(name)
            if room is None:
                if name != LOBBY:
                    self._make_place(address)
                room = Room(name, limits=self.limits, pictures=self.pictures, metrics=self._metrics)
                assert self._tasks is not None
                await self._tasks.start(room.run)
                self.rooms[name] = room
                await self.log.open(room)
                self._metrics.rooms.set(len(self.rooms))
            return room

    def _make_place(self, address: str) -> None:
        """Close an empty room if there are too many."""
        allowed = self._openings.pop(address, None)
        if allowed is None:
            allowed = Allowance(self.limits.address_rooms_rate, self.limits.address_rooms)
        # Those that have opened none for longest are forgotten first.
        self._openings[address] = allowed
        if len(self._openings) > ADDRESSES:
            del self._openings[next(iter(self._openings))]
        if not allowed.take():
            raise HTTPException(429, "You are opening too many rooms")
        others = [room for room in self.rooms.values() if room.name != LOBBY]
        if len(others) >= self.limits.rooms:
            empty = next((room for room in others if not room.members), None)
            if empty is None:
                raise HTTPException(503, "There are too many rooms")
            empty.close()
            del self.rooms[empty.name]

    async def _serve(self, websocket: WebSocket, room: Room, member: Member) -> None:
        await room.join(member, self._about())
        self.posting[member.token] = room, member
        ending = None
        try:
            with member.scope:
                ending = await self._listen(websocket, room, member)
        finally:
            del self.posting[member.token]
            room.leave(member)
        if (ending := ending or member.ending) is not None:
            await self._close(websocket, member, ending)
        with anyio.move_on_after(self.limits.close_seconds):
            await member.queue.finish()

    async def _listen(
        self, websocket: WebSocket, room: Room, member: Member
    ) -> DroppedError | None:
        """Take what a member sends until its connection has to end; ``None`` if it is gone."""
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            try:
                await self._take(room, member, message.get("text"))
            except MalformedError as exc:
                return DroppedError(POLICY_VIOLATION, f"not a message of this chat: {exc}")
            except DroppedError as ending:
                return ending

    async def _close(self, websocket: WebSocket, member: Member, ending: DroppedError) -> None:
        """Send a close frame after all that waits, and wait until the peer has closed as well.

        A member that does not take the frame in time is reset, so that nothing is kept for it.

        :raises ClientDisconnectedError: the connection has to be reset.
        """
        self._metrics.dropped.labels(str(ending.code)).inc()
        with anyio.move_on_after(self.limits.close_seconds), suppress(WebSocketDisconnect):
            await member.queue.written()
            await websocket.close(ending.code, ending.reason)
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass
            return
        self._metrics.reset.inc()
        raise ClientDisconnectedError("the member has not closed in time")

    # --- messages ---

    async def _take(self, room: Room, member: Member, text: str | None) -> None:
        """Take a message.

        :raises MalformedError: it is none of this chat.
        :raises DroppedError: the member is flooding.
        """
        if text is None:
            raise MalformedError("it is not text")
        try:
            said = parse(text)
            if said is not None:
                await self.post(room, member, said)
            elif member.messages.take():
                member.tell(text_frame(BEAT))
            else:
                raise RefusedError("", "you are asking too often")
            member.strikes = 0
        except RefusedError as refused:
            member.strikes += 1
            if member.strikes > self.limits.strikes:
                raise DroppedError(POLICY_VIOLATION, "flooding") from None
            self.refuse(member, refused)

    def refuse(self, member: Member, refused: RefusedError) -> None:
        """Tell a member that its message was refused."""
        self._metrics.refused.inc()
        refusal = encode(type="refused", nonce=refused.nonce, reason=refused.reason)
        member.tell(text_frame(refusal))

    async def post(self, room: Room, member: Member, said: Say | Picture) -> None:
        """Have a message delivered.

        :raises RefusedError: the member has sent too much, or the log is full.
        """
        if not member.messages.take():
            raise RefusedError(said.nonce, "you are sending too fast")
        if isinstance(said, Picture) and not member.pictures.take(len(said.content)):
            raise RefusedError(said.nonce, "you are sending too many pictures")
        ident = self.log.new_id()
        at = time.time_ns() // 1_000_000
        if isinstance(said, Say):
            post = post_text(ident, at, member.id, member.name, said)
        else:
            post = post_picture(ident, at, member.id, member.name, said)
        try:
            await self.log.post(room, post, partial(_answer, member, said.nonce, ident))
        except FullError:
            raise RefusedError(
                said.nonce, "too many messages wait for the connection to other servers"
            ) from None


def _answer(member: Member, nonce: str, ident: str, kind: Literal["pending", "ack"]) -> None:
    member.tell(text_frame(encode(type=kind, nonce=nonce, id=ident)))


def address_of(connection: HTTPConnection) -> str:
    """Return the address of a client."""
    return connection.client.host if connection.client is not None else ""
