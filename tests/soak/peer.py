"""The other end, in a process of its own: it reads, or not, as the first frame asks it to.

It listens on loopback (TCP and UDP) and on a UNIX socket, prints where as one line of JSON, and
goes on until its input ends; then it prints what it has seen.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections import Counter
from contextlib import suppress

from tests.soak.frames import HEADER, Checker, WrongBytesError

# What a connection's first frame asks for; the parameter is in milliseconds or KiB.
READ = 1  # everything, at once
READ_SLOWLY = 2
STALL = 3  # for so many milliseconds, and then reset
STALL_AND_CLOSE = 4
RESET = 5  # after so many KiB
CLOSE = 6  # after so many KiB
TALK = 7  # write what nobody reads, and read nothing until the other end has closed
BEHAVIOURS = (READ, READ_SLOWLY, STALL, STALL_AND_CLOSE, RESET, CLOSE, TALK)

# What is written back when a connection's end has arrived, with all that came before.
ANSWER = b"whole"
# A connection of that kind lives for a second or two; then its close has to be noticed here.
NOTICED_SECONDS = 15
SMALL_BUFFER = 64 << 10
MOST_FAULTS = 20

counts: Counter[str] = Counter()
faults: list[str] = []
tasks: set[asyncio.Task[None]] = set()


def reset(sock: socket.socket) -> None:
    """Close so that the other end sees a reset."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def converse(sock: socket.socket) -> None:
    """Serve one connection."""
    loop = asyncio.get_running_loop()
    checker = Checker()
    try:
        while checker.hello is None:
            # No more than the first frame: what follows may have to stay unread.
            data = await loop.sock_recv(sock, HEADER.size)
            if not data:
                return
            checker.feed(data)
        await behave(sock, checker, *checker.hello)
    except WrongBytesError as exc:
        counts["wrong"] += 1
        if len(faults) < MOST_FAULTS:
            faults.append(f"{exc} (behaviour and parameter {checker.hello})")
    except OSError:
        counts["reset by the sender"] += 1
    finally:
        counts["connections"] += 1
        counts["frames"] += checker.frames
        counts["cut short"] += not checker.is_whole
        sock.close()


async def behave(sock: socket.socket, checker: Checker, behaviour: int, parameter: int) -> None:
    loop = asyncio.get_running_loop()
    if behaviour == TALK:
        await loop.sock_sendall(sock, bytes(8 << 10))
        await until_reset(sock)
        return
    if behaviour in (STALL, STALL_AND_CLOSE):
        await asyncio.sleep(parameter / 1000)
        if behaviour == STALL:
            reset(sock)
        return
    left = parameter << 10 if behaviour in (RESET, CLOSE) else 1 << 62
    chunk = 4096 if behaviour == READ_SLOWLY else 1 << 18
    while left > 0:
        data = await loop.sock_recv(sock, min(chunk, left))
        if not data:
            return
        left -= len(data)
        checker.feed(data)
        if checker.ended:
            counts["whole"] += 1
            await loop.sock_sendall(sock, ANSWER)
            return
        if behaviour == READ_SLOWLY:
            await asyncio.sleep(0.001)
    if behaviour == RESET:
        reset(sock)


async def until_reset(sock: socket.socket) -> None:
    """Go on writing until the kernel says that nobody is there any more: a reset, as of any socket
    that is closed with bytes unread."""
    for _ in range(NOTICED_SECONDS * 20):
        await asyncio.sleep(0.05)
        try:
            sock.send(b"x", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            continue
        except OSError:
            counts["closes noticed"] += 1
            return
    raise WrongBytesError(f"after {NOTICED_SECONDS} s the close of the other end was not noticed")


async def accept(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        sock, _ = await loop.sock_accept(listener)
        task = loop.create_task(converse(sock))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def take_datagrams(sock: socket.socket) -> None:
    """Each is a frame of its own."""
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, 1 << 16)
        counts["datagrams"] += 1
        checker = Checker()
        try:
            checker.feed(data)
            if not checker.is_whole or checker.frames != 1:
                raise WrongBytesError(f"a datagram of {len(data)} bytes is not whole")
        except WrongBytesError as exc:
            faults.append(f"{exc} (datagram)")


def listen(family: int, kind: int, address: object, buffer: int) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.bind(address)  # type: ignore[arg-type]
    if kind == socket.SOCK_STREAM:
        sock.listen(512)
    sock.setblocking(False)
    return sock


async def main(path: str) -> None:
    tcp = listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), 1 << 20)
    small = listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), SMALL_BUFFER)
    unix = listen(socket.AF_UNIX, socket.SOCK_STREAM, path, SMALL_BUFFER)
    udp = listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0), 4 << 20)
    ports = {"tcp": tcp, "small": small, "udp": udp}
    print(json.dumps({name: sock.getsockname()[1] for name, sock in ports.items()}), flush=True)
    servers = [asyncio.ensure_future(accept(sock)) for sock in (tcp, small, unix)]
    servers.append(asyncio.ensure_future(take_datagrams(udp)))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.cancel()
    print(json.dumps({"counts": counts, "faults": faults}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
