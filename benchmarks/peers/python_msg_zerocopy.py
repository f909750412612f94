"""``MSG_ZEROCOPY`` from Python, as one would write it by hand: flag, error queue, and nothing else.

The buffer of a send may be changed again when its number has come back in the error queue.  That is
read when ``OUTSTANDING_MOST`` numbers are due, and at the end.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers.peer import Job, Send, peer

# asm-generic/socket.h, linux/socket.h, linux/errqueue.h; Python has no names for them.
SO_ZEROCOPY = 60
MSG_ZEROCOPY = 0x4000000
SO_EE_ORIGIN_ZEROCOPY = 5
SO_EE_CODE_ZEROCOPY_COPIED = 1
# struct sock_extended_err: errno, origin, type, code, pad, info, data.
EXTENDED_ERROR = struct.Struct("=IBBBBII")
# The kernel keeps only as many notifications as net.core.optmem_max has room for.
OUTSTANDING_MOST = 64
WAIT_MILLISECONDS = 10_000


class ZeroCopySocket:
    """Sends from the caller's memory, and learns when the kernel has let go of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        self._poll = select.poll()
        # Errors are always reported.
        self._poll.register(sock, 0)
        self.outstanding = 0
        self.copied = 0

    def send(self, data: bytes) -> None:
        """Send all of it; blocks while the socket is full."""
        view = memoryview(data)
        while view:
            try:
                sent = self._socket.send(view, MSG_ZEROCOPY)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS or not self.outstanding:
                    raise
                self.wait()
                continue
            view = view[sent:]
            self.outstanding += 1
            if self.outstanding >= OUTSTANDING_MOST:
                self.wait()

    def wait(self) -> None:
        """Wait for the notifications of some sends."""
        if not self._poll.poll(WAIT_MILLISECONDS):
            raise TimeoutError("no notification")
        while self.outstanding:
            try:
                _, control, _, _ = self._socket.recvmsg(
                    0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            for _level, _kind, message in control:
                number, origin, _, code, _, first, last = EXTENDED_ERROR.unpack_from(message)
                if origin != SO_EE_ORIGIN_ZEROCOPY or number:
                    raise OSError(number, "the error queue has another error")
                # Numbers have 32 bits, and wrap.
                ended = ((last - first) & 0xFFFFFFFF) + 1
                self.outstanding -= ended
                if code & SO_EE_CODE_ZEROCOPY_COPIED:
                    self.copied += ended


@peer("MSG_ZEROCOPY in Python", "stream", "broadcast", "datagram")
@asynccontextmanager
async def _loop(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    for sock in job.sockets:
        sock.setblocking(True)
    senders = [ZeroCopySocket(sock) for sock in job.sockets]

    async def send(count: int) -> None:
        for _ in range(count):
            for sender in senders:
                sender.send(payload)
        for sender in senders:
            while sender.outstanding:
                sender.wait()

    yield send
    job.notes["copied"] = sum(sender.copied for sender in senders)
