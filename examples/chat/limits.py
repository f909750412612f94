"""What the chat allows, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ChatLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLimits:
    """What members may do, and how long the chat waits for them.

    :ivar message_rate: messages a second that a member may send, in the long run.
    :ivar message_burst: messages that it may send at once.
    :ivar picture_rate: bytes of pictures a second, in the long run.
    :ivar picture_burst: bytes of pictures at once.
    :ivar strikes: messages refused in a row until the member is dropped.
    :ivar uploads: pictures being received at the same time; more are refused.
    :ivar address_uploads: of these, from one address.
    :ivar address_members: members from one address.
    :ivar address_rooms: rooms that one address may open at once.
    :ivar address_rooms_rate: rooms a second that it may open in the long run.
    :ivar upload_seconds: time for a picture to arrive.
    :ivar queue_bytes: bytes that may wait for a member; beyond that it is dropped.
    :ivar lag_seconds: time that something may wait for a member; then it is dropped.
    :ivar ping_seconds: time between two pings; a member that does not answer one is dropped.
    :ivar close_seconds: time for a member to take what was queued for it and a close frame.
    :ivar rooms: rooms at once, besides the lobby; empty rooms whose history is kept count as well.
    :ivar history: messages of a room that are kept.
    :ivar history_bytes: bytes of these, without the pictures.
    :ivar picture_memory: bytes of pictures that are kept, for all rooms together.
    """

    message_rate: float = 5
    message_burst: float = 20
    picture_rate: float = 1 << 20
    picture_burst: float = 32 << 20
    strikes: int = 20
    uploads: int = 16
    address_uploads: int = 4
    address_members: int = 1000
    address_rooms: float = 20
    address_rooms_rate: float = 1 / 30
    upload_seconds: float = 60
    queue_bytes: int = 16 << 20
    lag_seconds: float = 15
    ping_seconds: float = 20
    close_seconds: float = 5
    rooms: int = 500
    history: int = 100
    history_bytes: int = 256 << 10
    picture_memory: int = 64 << 20
