"""The benchmark of web servers refuses what is wrong, and counts all processes of a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import pytest

from benchmarks.web.application import GREETING
from benchmarks.web.load import BLOCK, Content, Load, Target, Wrong, by_wrk, downloads, uploads
from benchmarks.web.messages import echoes, to_all
from benchmarks.web.watch import Watch
from tests.asgi.rig import serving
from tests.support.backends import one_backend
from tests.support.needs import need_command

pytestmark = pytest.mark.anyio

# Has a child take 0.2 s of CPU time when it is told to.
WORK = """
import time
print("ready", flush=True)
input()
begun = time.process_time()
while time.process_time() < begun + 0.2:
    pass
print("done", flush=True)
input()
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORK!r}])"


class Application:
    """Answers as the benchmark's does; from a request of some number on not quite."""

    def __init__(self, wrong_from: float) -> None:
        self.wrong_from = wrong_from
        self.asked = 0

    def is_wrong(self) -> bool:
        self.asked += 1
        return self.asked > self.wrong_from

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if scope["type"] == "websocket":
            await self.talk(scope["path"] == "/room", receive, send)
            return
        size = len(BLOCK)
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
            size -= self.is_wrong()
            crc = Content.of(BLOCK).crc if scope["query_string"] else 0
            body = b'{"size": %d, "crc": %d}' % (size, crc)
        else:
            body = BLOCK[: size // 2 if self.is_wrong() else size]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def talk(self, greets: bool, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if greets:
            await send({"type": "websocket.send", "text": GREETING})
        while (message := await receive())["type"] == "websocket.receive":
            text = message["text"]
            text = text[:-1] + "x" if self.is_wrong() else text
            await send({"type": "websocket.send", "text": text})


async def load(run: Callable[[Target, Watch], Load], path: str, wrong_from: float) -> Load | Wrong:
    """Have a client measure the application; return what it measures, or what is wrong."""
    content = Content.of(BLOCK) if path == "/" else Content(200, 0)
    async with serving(Application(wrong_from)) as rig:
        target = Target(rig.port, path, content, 1, 0.05)
        try:
            return await anyio.to_thread.run_sync(run, target, Watch(os.getpid()))
        except Wrong as exc:
            return exc


# What is asked for before it is measured: 20 requests, one, 3 messages.
CLIENTS = {
    "wrk": (by_wrk, "/", 20),
    "downloads": (downloads, "/", 1),
    "uploads": (uploads, "/", 1),
    "echoes": (echoes, "/echo", 3),
    "messages to all": (to_all, "/room", 3),
}


@one_backend
@pytest.mark.parametrize("name", CLIENTS)
async def test_what_is_wrong_is_refused(name: str) -> None:
    if name == "wrk":
        need_command("wrk", "wrk")
    run, path, before = CLIENTS[name]
    right = await load(run, path, float("inf"))
    assert isinstance(right, Load), right
    assert right.operations > 0
    for wrong_from in (0, before):
        assert isinstance(await load(run, path, wrong_from), Wrong)


def test_the_work_of_all_processes_counts() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        with Watch(parent.pid) as watch:
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == b"done\n"
        parent.stdin.write(b"\n")
        parent.stdin.flush()
    assert watch.cpu_seconds >= 0.2
    assert watch.memory[0] > 1 << 20
