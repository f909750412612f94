"""A room by the library websockets alone: what one message to all members costs without ASGI."""

from __future__ import annotations

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.web.application import GREETING

members: set[ServerConnection] = set()


async def room(connection: ServerConnection) -> None:
    members.add(connection)
    await connection.send(GREETING)
    try:
        async for text in connection:
            broadcast(members, text)
    finally:
        members.discard(connection)


async def main(port: int) -> None:
    """Serve until the process is ended."""
    async with serve(room, "127.0.0.1", port, compression=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
