"""``MSG_ZEROCOPY`` from C: the loop of ``msg_zerocopy.c``, called once for all sends."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Job, Send, peer

SOURCE = Path(__file__).with_name("msg_zerocopy.c")
LIBRARY = Path(__file__).resolve().parents[2] / "build" / "benchmarks" / "msg_zerocopy.so"


@functools.cache
def _loop() -> Any:
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        unfinished = LIBRARY.with_suffix(f".{os.getpid()}")
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *options, str(SOURCE), "-o", str(unfinished)], check=True)
        unfinished.replace(LIBRARY)
    function = ctypes.CDLL(str(LIBRARY)).send_zero_copy
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long]
    function.restype = ctypes.c_long
    return function


@peer("MSG_ZEROCOPY in C", "stream", "datagram")
@asynccontextmanager
async def _send(job: Job) -> AsyncIterator[Send]:
    loop = _loop()
    [sock] = job.sockets
    sock.setblocking(True)

    async def send(count: int) -> None:
        result = loop(sock.fileno(), job.payload, len(job.payload), count)
        if result:
            raise OSError(-result, os.strerror(-result))

    yield send
