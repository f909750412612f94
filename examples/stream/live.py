"""The live picture: each frame is rendered once, into one buffer, and broadcast to all viewers.

A frame goes to the viewers that have at most one frame outstanding, in a send group of its own;
the others skip it.  Groups of several frames are open at the same time: a group is left when its
slowest viewer has taken the frame, and the next frame must not wait for that.  A viewer who takes
nothing holds the buffers of two frames until it is dropped.  So at most the frames of the time
after which viewers are dropped are in use, however many viewers stall, and the pool has that many
buffers.

Over TLS each viewer writes a copy of the newest frame, and skips those that come meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from errno import ETIMEDOUT

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

import zc_anyio
from zc_anyio.asgi import ClientDisconnectedError

from ..serving import Metrics
from .picture import BOUNDARY, FIRST, Part, Picture
from .viewers import FRAMES_AHEAD, GroupViewer, Viewer, WrittenViewer

__all__ = ["Live"]

# A viewer is shown as stalled when a frame is outstanding for this long.
STALLED_SECONDS = 2.0
HEADERS = [
    (b"content-type", f"multipart/x-mixed-replace; boundary={BOUNDARY}".encode()),
    (b"cache-control", b"no-store"),
]


class Live(Collector):
    """Renders frames while somebody watches, and sends them to all viewers.

    :param fps: frames a second.
    :param viewers: how many viewers, at most; further ones are answered 503.
    :param stall_seconds: a viewer with a frame outstanding for longer is dropped.
    """

    def __init__(
        self,
        picture: Picture,
        metrics: Metrics,
        *,
        fps: float,
        viewers: int,
        stall_seconds: float,
    ) -> None:
        self._picture = picture
        self._fps = fps
        self._viewers_most = viewers
        self._stall_seconds = stall_seconds
        self._viewers: set[Viewer] = set()
        self._watched = anyio.Event()
        self._pool: zc_anyio.BufferPool | None = None
        self._stopping = False
        registry = metrics.registry
        registry.register(self)
        self._rendered = Counter("stream_frames", "Frames rendered", registry=registry)
        self._delivered = Counter(
            "stream_frames_delivered", "Frames sent, each viewer's counted", registry=registry
        )
        self._skipped = Counter(
            "stream_frames_skipped", "Frames that a viewer was too slow for", registry=registry
        )
        self._dropped = Counter(
            "stream_viewers_dropped", "Viewers dropped because they stalled", registry=registry
        )
        self._bytes = Counter("stream_live_bytes", "Bytes of frames sent", registry=registry)

    # --- viewers ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the live picture, until the viewer or the server ends it."""
        if len(self._viewers) >= self._viewers_most:
            raise HTTPException(503, "Too many viewers", {"retry-after": "10"})
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": FIRST, "more_body": True})
        if scope["method"] != "HEAD" and not self._stopping:
            viewer = _viewer(scope, send)
            self._viewers.add(viewer)
            self._watched.set()
            try:
                with viewer.scope:
                    async with anyio.create_task_group() as tasks:
                        if isinstance(viewer, WrittenViewer):
                            tasks.start_soon(viewer.write)
                        while (await receive())["type"] != "http.disconnect":
                            pass
                        tasks.cancel_scope.cancel()
            finally:
                self._viewers.discard(viewer)
            if viewer.dropped:
                raise ClientDisconnectedError("the viewer has stalled")
        await send({"type": "http.response.body"})

    def _drop(self, viewer: Viewer) -> None:
        """Reset a viewer's connection."""
        if not viewer.dropped:
            viewer.dropped = True
            self._dropped.inc()
            viewer.scope.cancel()

    def _ready(self, now: float) -> list[Viewer]:
        """Return the viewers for the next frame, and drop those that have stalled."""
        ready = []
        for viewer in self._viewers:
            viewer.look()
            since = viewer.waits_since()
            if since is not None and now - since > self._stall_seconds:
                self._drop(viewer)
            elif viewer.is_ready:
                ready.append(viewer)
            else:
                self._skipped.inc()
        return ready

    # --- frames ---

    async def run(self, ring: zc_anyio.Ring, stop: anyio.Event) -> None:
        """Produce frames until ``stop`` is set; then end all answers."""
        room = await anyio.to_thread.run_sync(self._picture.room)
        count = min(int(self._fps * (self._stall_seconds + 1)), self._viewers_most * FRAMES_AHEAD)
        async with (
            zc_anyio.open_buffer_pool(ring=ring, buffer_size=room, count=count + 2) as self._pool,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._produce, self._pool, tasks)
            await stop.wait()
            self._stopping = True
            for viewer in self._viewers:
                viewer.scope.cancel()
            # Connections of viewers who do not take their last frames are reset.
            tasks.cancel_scope.cancel()

    async def _produce(self, pool: zc_anyio.BufferPool, sending: TaskGroup) -> None:
        number = 0
        at = anyio.current_time()
        period = 1 / self._fps
        while True:
            if not self._viewers:
                self._watched = anyio.Event()
                await self._watched.wait()
            number += 1
            view = await pool.acquire()
            part = await anyio.to_thread.run_sync(
                self._picture.encode, number, datetime.now().astimezone(), view
            )
            self._rendered.inc()
            await sending.start(self._broadcast, part)
            # A frame that is a little late does not delay the next ones; frames that could not be
            # rendered in time are left out.
            at += period
            at += max(0, (anyio.current_time() - at) // period) * period
            await anyio.sleep_until(at)

    async def _broadcast(self, part: Part, *, task_status: TaskStatus[None]) -> None:
        """Send one buffer to all; ends when the kernel does not read it any more.

        A viewer that takes longer than a stalled one may is reset, which frees the buffer.
        """
        now = anyio.current_time()
        ready = self._ready(now)
        viewers = [viewer for viewer in ready if isinstance(viewer, GroupViewer)]
        written = [viewer for viewer in ready if isinstance(viewer, WrittenViewer)]
        if written:
            frame = bytes(part.bare)
            self._bytes.inc(len(written) * len(frame))
            for one in written:
                one.give(frame, now)
        async with zc_anyio.send_group(
            on_error="collect", release_timeout=self._stall_seconds
        ) as group:
            for piece, chunked in ((part.chunk, True), (part.bare, False)):
                some = [viewer for viewer in viewers if viewer.chunked is chunked]
                for viewer in some:
                    viewer.sent(len(piece), now)
                self._bytes.inc(len(some) * len(piece))
                await group.broadcast([viewer.stream for viewer in some], piece)
            self._delivered.inc(len(ready))
            # Queued in the order of the frames, before the next one is rendered.
            task_status.started()
        late = {failure.stream for failure in group.failures if failure.error.errno == ETIMEDOUT}
        for viewer in viewers:
            if viewer.stream in late:
                self._drop(viewer)

    # --- metrics ---

    def collect(self) -> Iterator[Metric]:
        """Yield the present values."""
        viewers = list(self._viewers)
        now = anyio.current_time()
        stalled = 0
        for viewer in viewers:
            viewer.look()
            since = viewer.waits_since()
            stalled += since is not None and now - since > STALLED_SECONDS
        memory = [viewer.kernel_memory() for viewer in viewers]
        for name, text, value in (
            ("viewers", "Viewers", len(viewers)),
            ("viewers_stalled", f"With a frame outstanding for {STALLED_SECONDS} s", stalled),
            (
                "unacknowledged_bytes",
                "Bytes of frames on their way, each viewer's counted",
                sum(viewer.unacknowledged for viewer in viewers),
            ),
            ("kernel_bytes", "What the sockets of viewers account for that", sum(memory)),
            ("kernel_bytes_most", "The largest of one viewer", max(memory, default=0)),
        ):
            yield GaugeMetricFamily(f"stream_{name}", text, value)
        if self._pool is not None:
            size, count, free = self._pool.buffer_size, self._pool.count, self._pool.free
            yield GaugeMetricFamily("stream_pool_bytes", "Memory of the pool", count * size)
            yield GaugeMetricFamily(
                "stream_pool_held_bytes", "Of that, in use or still read", (count - free) * size
            )


def _viewer(scope: Scope, send: Send) -> Viewer:
    extensions = scope["extensions"]
    if "tls" in extensions:
        return WrittenViewer(send)
    return GroupViewer(extensions["zc_anyio"]["stream"], chunked=scope["http_version"] == "1.1")
