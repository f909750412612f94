"""liburing's ``examples/send-zerocopy``, if a built one is named: what C with io_uring reaches.

It is not part of this project; docs/performance/method.md says how to build it.  It makes a
connection of its own and sends for whole seconds.  This module takes a descriptor of the connection
from it (with ``pidfd_getfd``), to find out what the peer has acknowledged after it has ended.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from benchmarks.lab.network import ADDRESS
from benchmarks.measure.counting import Device, acknowledged
from benchmarks.peers.huge_pages import why_no_huge_pages
from benchmarks.peers.peer import Job, Outside, Send, peer

OPTION = "send_zerocopy"
# The system call has the same number on all architectures.
PIDFD_GETFD = 438
SUMMARY = re.compile(r"packets=(\d+) \(MB=\d+\), rps=(\d+)")
CONNECTED_SECONDS = 0.5


def _why_not(options: dict[str, str], *, huge_pages: bool) -> str | None:
    if options["place"] != "lab":
        return "the receiver cannot count bytes of a connection that it does not know"
    if huge_pages and (reason := why_no_huge_pages(options)) is not None:
        return reason
    program = options.get(OPTION)
    if not program:
        return "no built program was named (--send-zerocopy)"
    return None if shutil.which(program) else f"{program} cannot be run"


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _connection_of(pid: int, kind: int) -> socket.socket:
    """Return the connected socket of another process as one of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    try:
        until = time.monotonic() + CONNECTED_SECONDS
        while time.monotonic() < until:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    what = entry.readlink().name
                except FileNotFoundError:  # closed meanwhile
                    continue
                if not what.startswith("socket:"):
                    continue
                fd: int = libc.syscall(PIDFD_GETFD, handle, int(entry.name), 0)
                if fd < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
                sock = socket.socket(fileno=fd)
                if sock.type == kind:
                    return sock
                sock.close()
            time.sleep(0.001)
    finally:
        os.close(handle)
    raise TimeoutError("the program made no connection")


@asynccontextmanager
async def _program(job: Job, *, huge_pages: bool, datagrams: bool = False) -> AsyncIterator[Send]:
    size = len(job.payload)
    # Several requests at a time on a stream would be reordered.
    batch = "8" if datagrams else "1"
    command = [job.options[OPTION], "-4", "-D", ADDRESS, "-p", "80", "-s", str(size), "-t", "1"]
    command += ["-n", batch, "-C", str(job.core), "-l", str(int(huge_pages)), "-d"]
    command += ["udp" if datagrams else "tcp"]

    async def send(_count: int) -> Outside:
        cpu = _child_seconds()
        device = Device() if datagrams else None
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
            assert process.stdout is not None
            kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
            with _connection_of(process.pid, kind) as sock:
                output = process.stdout.read()
                process.wait()
                found = SUMMARY.search(output)
                if found is None:
                    raise RuntimeError(f"{command[0]} said {output.strip()!r}")
                sends, rate = map(int, found.groups())
                # Besides its bytes, the SYN and the FIN have been acknowledged.
                counted = device.payload() if device else acknowledged(sock) - 2
        return Outside(sends * size, counted, sends / rate, _child_seconds() - cpu)

    yield send


for _huge in (False, True):
    _name = f"liburing send-zerocopy{', huge pages' if _huge else ''}"
    _why = partial(_why_not, huge_pages=_huge)
    peer(_name, "stream", why_not=_why)(partial(_program, huge_pages=_huge))
    peer(_name, "datagram", why_not=_why)(partial(_program, huge_pages=_huge, datagrams=True))
