"""Pictures over HTTP: members post them, and fetch those that they look at."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import aclosing, suppress

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .chat import Chat, address_of
from .messages import IMAGE_BYTES, PREVIEW_BYTES, RefusedError, check_picture, media_type_of

__all__ = ["PictureRoutes"]

log = logging.getLogger("examples.chat")

GONE = "This picture is not kept any more"


class PictureRoutes:
    """The answers below ``/pictures``."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        # By address: pictures that are being received.
        self._uploads: Counter[str] = Counter()

    def routes(self) -> list[Route]:
        """Return what the application needs."""
        return [
            Route("/pictures", self.upload, methods=["POST"]),
            Route("/pictures/{room}/{ident}", self.picture),
            Route("/pictures/{room}/{ident}/preview", self.preview),
        ]

    async def upload(self, request: Request) -> Response:
        """Answer ``POST /pictures?token=…&nonce=…&name=…&preview=…``.

        The body is the preview, of as many bytes as is said, and the picture.
        """
        chat = self._chat
        try:
            chat.check_origin(request)
        except HTTPException as refused:
            log.warning("refused a picture of %s: %s", address_of(request), refused.detail)
            raise
        query = request.query_params
        room, member = chat.posting.get(query.get("token", ""), (None, None))
        if room is None or member is None:
            raise HTTPException(403, "only members post pictures")
        address = address_of(request)
        limits = chat.limits
        if (
            self._uploads.total() >= limits.uploads
            or self._uploads[address] >= limits.address_uploads
        ):
            raise HTTPException(503, "too many pictures are on their way", {"retry-after": "2"})
        self._uploads[address] += 1
        try:
            with anyio.fail_after(limits.upload_seconds):
                content = await _body(request)
            picture = check_picture(
                query.get("nonce", ""), query.get("name", ""), content, query.get("preview", "0")
            )
            await chat.post(room, member, picture)
        except TimeoutError:
            raise HTTPException(408, "the picture took too long") from None
        except RefusedError as refused:
            chat.refuse(member, refused)
            return PlainTextResponse(refused.reason, 422)
        finally:
            self._uploads[address] -= 1
            self._uploads += Counter()
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        """Answer ``/pictures/ROOM/ID``."""
        content, preview = await self._content(request)
        return _shown(content[preview:])

    async def preview(self, request: Request) -> Response:
        """Answer ``/pictures/ROOM/ID/preview``."""
        content, preview = await self._content(request)
        return _shown(content[:preview])

    async def _content(self, request: Request) -> tuple[bytes, int]:
        """Return a preview and its picture, and how many bytes the preview has.

        :raises HTTPException: 404.
        """
        chat = self._chat
        room = chat.rooms.get(request.path_params["room"])
        ident = request.path_params["ident"]
        # Only pictures that this room has seen: a known id must not open other rooms.
        kept = None
        if room is not None:
            kept = next((kept for kept in room.history if kept.id == ident), None)
        if kept is None or kept.preview is None:
            raise HTTPException(404, GONE)
        content = chat.pictures.get(ident)
        if content is None and (content := await chat.log.picture(ident)) is not None:
            chat.pictures.put(ident, content)
        if content is None:
            raise HTTPException(404, GONE)
        return content, kept.preview


def _shown(picture: bytes) -> Response:
    if not picture:
        raise HTTPException(404, GONE)
    return Response(
        picture,
        media_type=media_type_of(picture),
        headers={"cache-control": "private, max-age=31536000, immutable"},
    )


async def _body(request: Request) -> bytes:
    """Receive a body that is not much larger than a picture may be."""
    received = bytearray()
    with suppress(ClientDisconnect):  # what has come is refused, if anybody is there
        async with aclosing(request.stream()) as parts:
            async for part in parts:
                received += part
                if len(received) > PREVIEW_BYTES + IMAGE_BYTES:
                    break
    return bytes(received)
