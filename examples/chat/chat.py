"""The chat behind HTTP: members connect, talk, and leave or are dropped."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import aclosing, suppress
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup, TaskStatus
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
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
    check_picture,
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

__all__ = ["LOBBY", "Chat"]

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
        self._log = log
        self._metrics = metrics
        self._limits = limits
        self._server = server
        self._origins = origins
        self._pictures = Pictures(limits.picture_memory)
        self._opening = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._stopping = False
        # By token: who may post pictures, and where.
        self._posting: dict[str, tuple[Room, Member]] = {}
        # By address: members, uploads, and how many rooms it may open.
        self._members: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()
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
            await self._log.flush(self._limits.close_seconds)
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
        address = _address(websocket)
        try:
            self._check_origin(websocket)
            if self._members[address] >= self._limits.address_members:
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
            async with open_queue(websocket, limit=self._limits.queue_bytes) as queue:
                name = clean_name(websocket.query_params.get("name", "")) or "guest"
                await self._serve(websocket, room, Member(name, queue, self._limits))
        finally:
            self._members[address] -= 1
            self._members += Counter()  # those with none are forgotten

    def _check_origin(self, connection: HTTPConnection) -> None:
        """Refuse pages of other sites, which would act in the name of their visitors."""
        origin = connection.headers.get("origin")
        if origin is None or origin in self._origins:
            return
        host = connection.headers.get("host")
        if urlsplit(origin).netloc != host:
            # A proxy that does not pass the Host header on looks the same.
            raise HTTPException(403, f"pages of {origin} may not connect to {host}, see --origin")

    def _about(self) -> dict[str, object]:
        limits = {"text": TEXT_CHARACTERS, "image": IMAGE_BYTES}
        return {"limits": limits, "server": self._server, "shared": self._log.shared}

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
                room = Room(
                    name, limits=self._limits, pictures=self._pictures, metrics=self._metrics
                )
                assert self._tasks is not None
                await self._tasks.start(room.run)
                self.rooms[name] = room
                await self._log.open(room)
                self._metrics.rooms.set(len(self.rooms))
            return room

    def _make_place(self, address: str) -> None:
        """Close an empty room if there are too many."""
        allowed = self._openings.pop(address, None)
        if allowed is None:
            allowed = Allowance(self._limits.address_rooms_rate, self._limits.address_rooms)
        # Those that have opened none for longest are forgotten first.
        self._openings[address] = allowed
        if len(self._openings) > ADDRESSES:
            del self._openings[next(iter(self._openings))]
        if not allowed.take():
            raise HTTPException(429, "You are opening too many rooms")
        others = [room for room in self.rooms.values() if room.name != LOBBY]
        if len(others) >= self._limits.rooms:
            empty = next((room for room in others if not room.members), None)
            if empty is None:
                raise HTTPException(503, "There are too many rooms")
            empty.close()
            del self.rooms[empty.name]

    async def _serve(self, websocket: WebSocket, room: Room, member: Member) -> None:
        await room.join(member, self._about())
        self._posting[member.token] = room, member
        ending = None
        try:
            with member.scope:
                ending = await self._listen(websocket, room, member)
        finally:
            del self._posting[member.token]
            room.leave(member)
        if (ending := ending or member.ending) is not None:
            await self._close(websocket, member, ending)
        with anyio.move_on_after(self._limits.close_seconds):
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
        with anyio.move_on_after(self._limits.close_seconds), suppress(WebSocketDisconnect):
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
                await self._post(room, member, said)
            elif member.messages.take():
                member.tell(text_frame(BEAT))
            else:
                raise RefusedError("", "you are asking too often")
            member.strikes = 0
        except RefusedError as refused:
            member.strikes += 1
            if member.strikes > self._limits.strikes:
                raise DroppedError(POLICY_VIOLATION, "flooding") from None
            self._refuse(member, refused)

    def _refuse(self, member: Member, refused: RefusedError) -> None:
        self._metrics.refused.inc()
        refusal = encode(type="refused", nonce=refused.nonce, reason=refused.reason)
        member.tell(text_frame(refusal))

    async def _post(self, room: Room, member: Member, said: Say | Picture) -> None:
        if not member.messages.take():
            raise RefusedError(said.nonce, "you are sending too fast")
        if isinstance(said, Picture) and not member.pictures.take(len(said.content)):
            raise RefusedError(said.nonce, "you are sending too many pictures")
        ident = self._log.new_id()
        at = time.time_ns() // 1_000_000
        if isinstance(said, Say):
            post = post_text(ident, at, member.id, member.name, said)
        else:
            post = post_picture(ident, at, member.id, member.name, said)
        try:
            await self._log.post(room, post, partial(_answer, member, said.nonce, ident))
        except FullError:
            raise RefusedError(
                said.nonce, "too many messages wait for the connection to other servers"
            ) from None

    # --- pictures ---

    async def upload(self, request: Request) -> Response:
        """Answer ``POST /pictures?token=…&nonce=…&name=…``, whose body is a picture."""
        try:
            self._check_origin(request)
        except HTTPException as refused:
            log.warning("refused a picture of %s: %s", _address(request), refused.detail)
            raise
        query = request.query_params
        room, member = self._posting.get(query.get("token", ""), (None, None))
        if room is None or member is None:
            raise HTTPException(403, "only members post pictures")
        address = _address(request)
        limits = self._limits
        if (
            self._uploads.total() >= limits.uploads
            or self._uploads[address] >= limits.address_uploads
        ):
            raise HTTPException(503, "too many pictures are on their way", {"retry-after": "2"})
        self._uploads[address] += 1
        try:
            with anyio.fail_after(limits.upload_seconds):
                content = await _body(request)
            picture = check_picture(query.get("nonce", ""), query.get("name", ""), content)
            await self._post(room, member, picture)
        except TimeoutError:
            raise HTTPException(408, "the picture took too long") from None
        except RefusedError as refused:
            self._refuse(member, refused)
            return PlainTextResponse(refused.reason, 422)
        finally:
            self._uploads[address] -= 1
            self._uploads += Counter()
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        """Answer ``/pictures/ROOM/ID``."""
        room = self.rooms.get(request.path_params["room"])
        ident = request.path_params["ident"]
        # Only pictures that this room has seen: a known id must not open other rooms.
        kept = None
        if room is not None:
            kept = next((kept for kept in room.history if kept.id == ident), None)
        if room is None or kept is None:
            raise HTTPException(404, "This picture is not kept any more")
        content = self._pictures.get(ident)
        if content is None and (content := await self._log.picture(ident)) is not None:
            self._pictures.put(ident, content)
        if content is None:
            raise HTTPException(404, "This picture is not kept any more")
        return Response(
            content,
            media_type=kept.media_type,
            headers={"cache-control": "private, max-age=31536000, immutable"},
        )


def _answer(member: Member, nonce: str, ident: str, kind: Literal["pending", "ack"]) -> None:
    member.tell(text_frame(encode(type=kind, nonce=nonce, id=ident)))


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client is not None else ""


async def _body(request: Request) -> bytes:
    """Receive a body that is not much larger than a picture may be."""
    received = bytearray()
    with suppress(ClientDisconnect):  # what has come is refused, if anybody is there
        async with aclosing(request.stream()) as parts:
            async for part in parts:
                received += part
                if len(received) > IMAGE_BYTES:
                    break
    return bytes(received)
