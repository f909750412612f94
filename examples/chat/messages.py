"""The messages of the chat: what members send, what they get, and what is refused.

Each is a text message of the WebSocket, which holds a JSON object with a ``type``.  Pictures are
posted and fetched over HTTP; messages only tell of them.

From a member:

* ``{"type": "say", "nonce", "text"}``: the member chooses the nonce, to recognise the answer;
* ``{"type": "beat"}``: asks whether the server is there.

To a member:

* ``welcome``: ``id``, ``name`` (the one it got), ``token`` (with which it posts pictures),
  ``room``, ``members``, ``limits``, ``server``;
* ``message``: ``id``, ``by`` (the sender's id), ``from`` (its name), ``at`` (milliseconds since
  1970), ``text``;
* ``image``: ``id``, ``by``, ``from``, ``at``, ``name``, ``media_type``, ``size``, ``preview``: a
  picture, which is at ``/pictures/ROOM/ID``, and if ``preview`` is not 0, a small one of that many
  bytes at ``/pictures/ROOM/ID/preview``;
* ``presence``: ``joined``, ``left``;
* ``ack``: ``nonce``, ``id``: the message is in the history, and will not be lost;
* ``pending``: ``nonce``, ``id``: it was delivered here, and an ``ack`` will come;
* ``refused``: ``nonce``, ``reason``: it was refused;
* ``beat``: the server is there;
* ``status``: ``shared``: whether other servers can be reached.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "BEAT",
    "IMAGE_BYTES",
    "PREVIEW_BYTES",
    "TEXT_CHARACTERS",
    "TEXT_FRAME_BYTES",
    "MalformedError",
    "Picture",
    "Post",
    "RefusedError",
    "Request",
    "Say",
    "check_picture",
    "clean_name",
    "clean_room",
    "encode",
    "media_type_of",
    "parse",
    "post_picture",
    "post_text",
]

TEXT_CHARACTERS = 4000
IMAGE_BYTES = 8 << 20
PREVIEW_BYTES = 64 << 10
NAME_CHARACTERS = 32
OVERRIDES = "\u202d\u202e"
NONCE_CHARACTERS = 64
# Room for every character escaped, and for the rest of the object.
TEXT_FRAME_BYTES = 64 << 10
# Formats that browsers show and that cannot contain scripts, by their first bytes.
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
SIGNATURE_BYTES = 12


class MalformedError(Exception):
    """This is not a message of the protocol; its sender is dropped."""


class RefusedError(Exception):
    """A message that is refused, with the reason that its sender is told.

    :ivar nonce: the nonce of the message.
    """

    def __init__(self, nonce: str, reason: str) -> None:
        super().__init__(reason)
        self.nonce = nonce
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Say:
    """A member says something."""

    nonce: str
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A member drops a picture into the room.

    :ivar content: a preview, which its sender has made, and the picture.
    :ivar preview: bytes of the preview; 0 if there is none.
    """

    nonce: str
    name: str
    media_type: str
    content: bytes
    preview: int


Request: TypeAlias = Say | Picture


@dataclass(frozen=True, slots=True)
class Post:
    """A message as a room gets it.

    :ivar id: unique among all servers.
    :ivar header: JSON, as members get it.
    :ivar content: the preview and the picture, if it is one.
    """

    id: str
    header: bytes
    content: bytes | None = None


def encode(**fields: object) -> bytes:
    """Return a JSON object; lone surrogates must have been removed."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


BEAT = encode(type="beat")


def clean_text(text: str) -> str:
    """Return a text without blank ends, and without what would spoil others.

    These are control characters, lone surrogates, and overrides of the direction of writing.
    """
    kept = (
        c
        for c in text
        if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in OVERRIDES)
    )
    return "".join(kept).strip()


def clean_name(name: str) -> str:
    """Return a name of printable characters, shortened; empty if nothing is left."""
    return " ".join("".join(c for c in name if c.isprintable()).split())[:NAME_CHARACTERS].strip()


def clean_room(name: str) -> str:
    """Return the name of a room: lower case, of letters, digits and hyphens."""
    kept = (c if c.isalnum() and c.isprintable() else "-" for c in name.strip().lower())
    return "".join(kept)[:NAME_CHARACTERS].strip("-")


# --- from members ---


def parse(data: str) -> Say | None:
    """Read a message; ``None``: it asks whether the server is there.

    :raises MalformedError: it is not a message.
    :raises RefusedError: the text is empty or too long.
    """
    fields = _parse_object(data)
    match fields.get("type"):
        case "say":
            nonce = _string(fields, "nonce", NONCE_CHARACTERS)
            text = _string(fields, "text", TEXT_FRAME_BYTES)
            # What is much too long is not even cleaned, which takes long.
            if len(text) <= 2 * TEXT_CHARACTERS and not (text := clean_text(text)):
                raise RefusedError(nonce, "the message is empty")
            if len(text) > TEXT_CHARACTERS:
                raise RefusedError(nonce, f"the message has more than {TEXT_CHARACTERS} characters")
            return Say(nonce, text)
        case "beat":
            return None
    raise MalformedError("unknown type")


def check_picture(nonce: str, name: str, content: bytes, preview: str = "0") -> Picture:
    """Read a picture that was posted.

    :param preview: how many bytes of the content are a preview, which comes first.
    :raises RefusedError: it is not a picture of an accepted format, or too large.
    """
    nonce = clean_text(nonce)[:NONCE_CHARACTERS]
    # Without more digits than the largest has.
    size = int(preview) if preview.isascii() and preview.isdigit() and len(preview) < 6 else -1
    if not 0 <= size <= PREVIEW_BYTES or (size and media_type_of(content[:size]) is None):
        raise RefusedError(nonce, f"the preview is no picture of up to {PREVIEW_BYTES >> 10} KiB")
    media_type = media_type_of(content[size : size + SIGNATURE_BYTES])
    if media_type is None:
        raise RefusedError(nonce, "only PNG, JPEG, GIF and WebP pictures are taken")
    if len(content) - size > IMAGE_BYTES:
        raise RefusedError(nonce, f"the picture is larger than {IMAGE_BYTES >> 20} MiB")
    return Picture(nonce, clean_name(name), media_type, content, size)


def media_type_of(content: bytes) -> str | None:
    """Return the type of a picture by its first bytes, if it is of an accepted format."""
    for signature, media_type in SIGNATURES.items():
        if content.startswith(signature):
            return media_type
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _parse_object(data: str | bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise MalformedError("this is not JSON") from exc
    if not isinstance(fields, dict):
        raise MalformedError("this is not a JSON object")
    return fields


def _string(fields: dict[str, Any], name: str, most: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise MalformedError(f"{name} is missing, too long or not a string")
    return clean_text(value) if most == NONCE_CHARACTERS else value


# --- to members ---


def post_text(ident: str, at: int, by: str, sender: str, say: Say) -> Post:
    """Return a text as the room gets it."""
    sent = {"id": ident, "by": by, "from": sender, "at": at}
    return Post(ident, encode(type="message", **sent, text=say.text))


def post_picture(ident: str, at: int, by: str, sender: str, picture: Picture) -> Post:
    """Return a picture as the room gets it."""
    header = encode(
        type="image",
        **{"id": ident, "by": by, "from": sender, "at": at},
        name=picture.name,
        media_type=picture.media_type,
        size=len(picture.content) - picture.preview,
        preview=picture.preview,
    )
    return Post(ident, header, picture.content)
