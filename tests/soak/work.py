"""What a worker does, again and again: one piece of work after the other, chosen at random."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream

import zc_anyio
from tests.soak import frames, peer
from tests.soak.links import ANSWER_SECONDS, CALM, LOSSES, Link, Numbers, Place

ROUGH = 0.5  # of all work: cancelled somewhere, or with a peer that does not read
MOST_DATAGRAM = 60_000
POOL_BUFFER = 300_000
FILE_FRAMES = 40
# A sent file arrives whole, or the stream is broken: it is one piece of the library's.
FILE_SIZES = (0, 1, 1000, 16_000, 100_000)


def write_file(path: Path) -> list[int]:
    """Write a file of frames, and return where each begins, and where the last ends."""
    rng = random.Random(2)
    offsets = [0]
    with path.open("wb") as file:
        for number in range(FILE_FRAMES):
            offsets.append(
                offsets[-1] + file.write(frames.frame(0, number, rng.choice(FILE_SIZES)))
            )
    return offsets


class Worker:
    """One of the tasks that share a ring.

    :ivar done: how often each kind of work was done.
    """

    def __init__(
        self,
        source: int,
        place: Place,
        members: list[Link],
        file: Path,
        offsets: list[int],
        done: dict[str, int],
    ) -> None:
        self.numbers = Numbers(source)
        self.source = source
        self.place = place
        self.members = members
        self.file, self.offsets = file, offsets
        self.done = done

    async def work(self, rng: random.Random, until: float) -> None:
        """Do one thing after the other until that time."""
        kinds: list[Callable[[random.Random], Awaitable[None]]] = [
            self.converse,
            self.converse,
            self.converse,
            self.broadcast,
            self.broadcast_roughly,
            self.use_pool,
            self.send_datagrams,
            self.accept,
        ]
        while anyio.current_time() < until:
            kind = rng.choice(kinds)
            with anyio.fail_after(2 * ANSWER_SECONDS):
                await kind(rng)
            self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1

    # --- one connection

    async def converse(self, rng: random.Random) -> None:
        """Open a connection, send, and close it at any point."""
        rough = rng.random() < ROUGH
        link = await Link.open(rng, self.place, self.source, self.behaviour(rng, rough))
        await self.send_and_close(rng, link, rough)

    def behaviour(self, rng: random.Random, rough: bool) -> int:
        """How the peer of a connection behaves."""
        if rough:
            return rng.choice(peer.BEHAVIOURS)
        return peer.READ if rng.random() < 0.8 else peer.READ_SLOWLY

    async def send_and_close(
        self, rng: random.Random, link: Link, rough: bool, pool: zc_anyio.BufferPool | None = None
    ) -> None:
        try:
            with suppress(*LOSSES if rough else ()):
                for _ in range(rng.randrange(6)):
                    await self.perhaps_cancelled(rng, link, rough, pool)
                if link.is_calm and not link.spoiled:
                    await link.finish()
                elif rng.random() < 0.3:
                    await anyio.sleep(rng.random() * 0.05)
        finally:
            await link.close()

    async def perhaps_cancelled(
        self, rng: random.Random, link: Link, rough: bool, pool: zc_anyio.BufferPool | None
    ) -> None:
        seconds = rng.choice([0, 0.001, 0.01, 0.1]) if rough else float("inf")
        with anyio.move_on_after(seconds) as scope:
            if link.is_own and rng.random() < 0.4:
                await self.send_by_stream(rng, link)
            else:
                await self.send_by_group(rng, link, rough, pool)
        link.spoiled |= scope.cancelled_caught or not link.is_calm

    async def send_by_stream(self, rng: random.Random, link: Link) -> None:
        data: bytes | bytearray = self.numbers.frame(link.size(rng))
        if rng.random() < 0.4:
            data = bytearray(data)
        await link.stream.send(data)
        link.count += 1
        if isinstance(data, bytearray):
            data[:] = bytes(len(data))

    async def send_by_group(
        self, rng: random.Random, link: Link, rough: bool, pool: zc_anyio.BufferPool | None
    ) -> None:
        changeable: list[bytearray] = []
        timeout = rng.choice([None, 0.05, 5.0]) if rough else None
        window = rng.choice([1 << 16, 1 << 20, 4 << 20])
        try:
            async with zc_anyio.send_group(
                release_timeout=timeout, window=window, on_error="collect"
            ) as group:
                for _ in range(rng.randrange(1, 8)):
                    await self.send_one(rng, group, link, changeable, pool)
            if group.failures:
                link.spoiled = True
                if not rough:
                    raise frames.WrongBytesError(f"failed on {link.kind}: {group.failures}")
        finally:
            # The block has been left: whatever arrives changed now was released too early.
            for buffer in changeable:
                buffer[:] = bytes(len(buffer))

    async def send_one(
        self,
        rng: random.Random,
        group: zc_anyio.SendGroup,
        link: Link,
        changeable: list[bytearray],
        pool: zc_anyio.BufferPool | None,
    ) -> None:
        choice = rng.randrange(5)
        if pool is not None and choice < 3:
            data = self.numbers.frame(rng.randrange(pool.buffer_size - frames.HEADER.size))
            if not pool.free:
                # Those that this group holds come back with their generation only.
                group.flush()
            buffer = await pool.acquire()
            buffer[: len(data)] = data
            await group.send(link.stream, buffer[: len(data)])
        elif choice == 0:
            await group.send(link.stream, self.numbers.parts(link.size(rng)))
        elif choice == 1:
            changeable.append(bytearray(self.numbers.frame(link.size(rng))))
            await group.send(link.stream, changeable[-1])
        elif choice == 2 and link.behaviour != peer.READ_SLOWLY:
            first = rng.randrange(FILE_FRAMES)
            last = rng.randrange(first, FILE_FRAMES)
            begin, end = self.offsets[first], self.offsets[last + 1]
            await group.send_file(link.stream, self.file, offset=begin, count=end - begin)
            link.count += last - first
        else:
            await group.send(link.stream, self.numbers.frame(link.size(rng)))
        link.count += 1

    # --- many connections

    async def broadcast(self, rng: random.Random) -> None:
        """Send to connections that last for the whole run, with others."""
        async with zc_anyio.send_group() as group:
            for _ in range(rng.randrange(1, 10)):
                data = self.numbers.frame(rng.choice([50, 4000, 20_000, 200_000]))
                await group.broadcast([member.stream for member in self.members], data)
                for member in self.members:
                    member.count += 1

    async def broadcast_roughly(self, rng: random.Random) -> None:
        """Broadcast to peers of all kinds, cancelled, and close in the middle of it."""
        links: list[Link] = []
        try:
            for _ in range(rng.randrange(1, 6)):
                behaviour = self.behaviour(rng, rough=True)
                with suppress(*LOSSES):
                    links.append(await Link.open(rng, self.place, self.source, behaviour))
            with suppress(*LOSSES), anyio.move_on_after(rng.choice([0.001, 0.02, 0.2])):
                async with zc_anyio.send_group(on_error="collect") as group:
                    for _ in range(10):
                        data = self.numbers.frame(rng.choice([50, 20_000, 1 << 20]))
                        await group.broadcast([link.stream for link in links], data)
                        if links and rng.random() < 0.2:
                            await links.pop().close()
        finally:
            for link in links:
                await link.close()

    async def use_pool(self, rng: random.Random) -> None:
        """Send from registered buffers, of a pool that lives no longer."""
        rough = rng.random() < ROUGH
        link = await Link.open(rng, self.place, self.source, self.behaviour(rng, rough))
        size = POOL_BUFFER if link.behaviour != peer.READ_SLOWLY else 20_000
        async with zc_anyio.open_buffer_pool(buffer_size=size, count=3) as pool:
            await self.send_and_close(rng, link, rough, pool)

    # --- datagrams, and receiving

    async def send_datagrams(self, rng: random.Random) -> None:
        """Send by a UDP socket of the library, or by a group."""
        async with await zc_anyio.create_connected_udp_socket("127.0.0.1", self.place.udp) as udp:
            with anyio.move_on_after(rng.choice([0.001, 0.01, 1])):
                for _ in range(rng.randrange(20)):
                    await udp.send(self.numbers.frame(rng.randrange(MOST_DATAGRAM)))
                async with zc_anyio.send_group(on_error="collect") as group:
                    for _ in range(rng.randrange(20)):
                        await group.send(udp, self.numbers.parts(rng.randrange(MOST_DATAGRAM)))

    async def accept(self, rng: random.Random) -> None:
        """Be both ends of a few connections."""
        count = rng.randrange(1, 4)
        async with await zc_anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)
            accepting = listener.listeners[0]
            assert isinstance(accepting, SocketListener)
            async with anyio.create_task_group() as tasks:
                for _ in range(count):
                    client = await zc_anyio.connect_tcp("127.0.0.1", port)
                    server = await accepting.accept()
                    tasks.start_soon(self.receive_all, server)
                    tasks.start_soon(self.send_all, rng, client)

    async def send_all(self, rng: random.Random, stream: SocketStream) -> None:
        """Send frames, their end, and then the stream's."""
        count = rng.randrange(10)
        async with stream:
            for _ in range(count):
                await stream.send(self.numbers.frame(rng.choice([10, 3000, 70_000, 600_000])))
            await stream.send(frames.header(frames.END, number=count))
            await stream.send_eof()
            if await stream.receive() != peer.ANSWER:
                raise frames.WrongBytesError("the other end of this process answers something else")

    async def receive_all(self, stream: SocketStream) -> None:
        """Receive until the end of the stream."""
        checker = frames.Checker()
        async with stream:
            async for chunk in stream:
                checker.feed(chunk)
            if not checker.ended:
                raise frames.WrongBytesError("the stream ended before its last frame")
            await stream.send(peer.ANSWER)


async def open_members(rng: random.Random, place: Place, number: int) -> list[Link]:
    """Open the connections that last."""
    return [
        await Link.open(rng, place, 0, CALM[0], kind)
        for kind in ["own", "plain", "anyio", "unix"] * (number // 4)
    ]
