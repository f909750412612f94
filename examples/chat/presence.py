"""Who is in the rooms of other servers, as servers tell each other through Redis.

Each server tells who is in its rooms when that changes, and tells everything now and then.  So a
new server learns of the others, and one that is gone is forgotten.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
from coredis import Redis

from .messages import encode
from .rooms import Room

__all__ = ["Presence"]

TELL_SECONDS = 0.3
ALL_SECONDS = 5.0
FORGET_SECONDS = 15.0


@dataclass(slots=True)
class Server:
    """Another server.

    :ivar heard: when it last told something, by ``time.monotonic``.
    :ivar rooms: who is in each of its rooms.
    """

    heard: float
    rooms: dict[str, list[str]]


class Presence:
    """Tells who is here, and remembers who is elsewhere.

    :param rooms: the rooms of this server.
    """

    def __init__(self, origin: str, channel: str, rooms: Mapping[str, Room]) -> None:
        self.channel = channel
        self._origin = origin
        self._rooms = rooms
        self._servers: dict[str, Server] = {}
        self._told_all = 0.0

    def open(self, room: Room) -> None:
        """Tell a new room who is in it elsewhere."""
        for name, server in self._servers.items():
            room.set_elsewhere(name, server.rooms.get(room.name, []))

    async def tell(self, client: Redis[bytes]) -> None:
        """Tell who is here, until cancelled."""
        told: dict[str, list[str]] = {}
        self._told_all = 0.0
        while True:
            now = time.monotonic()
            here = {room.name: sorted(room.members) for room in self._rooms.values()}
            changed = {name: names for name, names in here.items() if names != told.get(name, [])}
            changed |= {name: [] for name in told.keys() - here.keys()}
            everything = now - self._told_all >= ALL_SECONDS
            if everything:
                self._told_all = now
                changed |= {name: names for name, names in here.items() if names}
            if everything or changed:
                await client.publish(self.channel, encode(server=self._origin, rooms=changed))
            told = here
            self._forget(unheard_since=now - FORGET_SECONDS)
            await anyio.sleep(TELL_SECONDS)

    def received(self, data: bytes) -> None:
        """Take in what a server tells."""
        fields = json.loads(data)
        name = fields["server"]
        if name == self._origin:
            return
        server = self._servers.get(name)
        if server is None:
            server = self._servers[name] = Server(0, {})
            self._told_all = 0.0  # it may be new, so tell it everything at once
        server.heard = time.monotonic()
        server.rooms.update(fields["rooms"])
        for room_name, names in fields["rooms"].items():
            if (room := self._rooms.get(room_name)) is not None:
                room.set_elsewhere(name, names)

    def forget_all(self) -> None:
        """Forget all other servers, since none can be reached."""
        self._forget(unheard_since=math.inf)

    def _forget(self, *, unheard_since: float) -> None:
        for name in [n for n, server in self._servers.items() if server.heard < unheard_since]:
            for room_name in self._servers.pop(name).rooms:
                if (room := self._rooms.get(room_name)) is not None:
                    room.set_elsewhere(name, [])
