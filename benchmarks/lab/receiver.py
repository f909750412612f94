"""A process that accepts connections over loopback, reads everything, and keeps nothing.

It ends with its standard input, so it does not outlive the process that started it.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["receiving"]

BACKLOG = 4096


@contextmanager
def receiving(core: int | None = None) -> Iterator[tuple[str, int]]:
    """Run the receiver, on one core if given, and yield its address."""
    command = [sys.executable, "-m", "benchmarks.lab.receiver"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            yield "127.0.0.1", int(process.stdout.readline())
        finally:
            process.stdin.close()


def _receive() -> None:
    # Ctrl-C is meant for the process that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    buffer = bytearray(1 << 20)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
                continue
            assert isinstance(key.fileobj, socket.socket)
            try:
                ended = not key.fileobj.recv_into(buffer)
                # A round ends when all is acknowledged; a delayed acknowledgement would add 40 ms.
                key.fileobj.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            except ConnectionError:
                ended = True
            if ended:
                selector.unregister(key.fileobj)
                key.fileobj.close()


if __name__ == "__main__":
    _receive()
