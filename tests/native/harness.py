"""A core whose kernel the test plays: `take` gives a request, `result` and `notify` answer it."""

from __future__ import annotations

from typing import Any

from tests.native.model_state import (
    AUTO,
    FAILED,
    IDLE,
    MORE,
    NOTIF,
    RELEASED,
    STAGE_SLAB,
    STREAM,
)
from zc_anyio._native._zc import ffi, lib

MEMORY = ffi.new("char[]", 1 << 16)
SOCK, CTX = 100, 200  # ids: these, then the next ones


class Queue:
    """A core with one socket and one context, to which more can be added."""

    def __init__(self, kind: int = STREAM, max_requests: int = 100, **ctx: int) -> None:
        self.core = lib.zc_core_new(2**32 - 1, max_requests)
        self.socks: list[Any] = []
        self.ctxs: list[Any] = []
        self.sock, self.ctx = self.add_sock(kind), self.add_ctx(**ctx)
        self.staging: Any = None

    def stage(self, slabs: int) -> None:
        self.staging = ffi.new("char[]", slabs * STAGE_SLAB)
        assert lib.zc_core_stage(self.core, self.staging, slabs * STAGE_SLAB) == 0

    def register(self, memory: Any, size: int) -> None:
        assert lib.zc_core_add_region(self.core, memory, size) >= 0

    def readable(self, view: Any) -> bytes:
        """What the kernel would read for a request."""
        addresses, sizes = ffi.new("uint64_t[1024]"), ffi.new("uint64_t[1024]")
        count = lib.zc_request_vector(self.core, view.user_data, addresses, sizes, 1024)
        assert count == view.buffers
        found = zip(addresses[0:count], sizes[0:count], strict=True)
        return b"".join(ffi.buffer(ffi.cast("char *", a), n)[:] for a, n in found)

    def add_sock(self, kind: int = STREAM, zero_copy: bool = True) -> Any:
        number = SOCK + len(self.socks)
        self.socks.append(lib.zc_sock_new(self.core, number, number, kind, zero_copy))
        return self.socks[-1]

    def add_ctx(
        self, first: int = 0, window: int = 1 << 40, threshold: int = 0, policy: int = AUTO
    ) -> Any:
        number = CTX + len(self.ctxs)
        self.ctxs.append(lib.zc_ctx_new(self.core, number, first, window, policy, threshold))
        return self.ctxs[-1]

    def send(self, *sizes: int, ctx: Any = None, sock: Any = None, flags: int = 0) -> int:
        data = [MEMORY] * len(sizes)
        where = (self.core, ctx or self.ctx, sock or self.sock)
        sent: int = lib.zc_queue_vector(*where, data, sizes, len(sizes), flags)
        return sent

    def take(self) -> Any:
        """The next request, or None."""
        view = ffi.new("struct zc_request_view *")
        return view if lib.zc_next_request(self.core, view) else None

    def result(self, view: Any, result: int, flags: int = MORE) -> int:
        code: int = lib.zc_complete(self.core, view.user_data, result, flags)
        return code

    def notify(self, view: Any, flags: int = 0) -> int:
        return self.result(view, 0, NOTIF | flags)

    def flush(self, ctx: Any = None, even_empty: bool = False) -> int:
        number: int = lib.zc_ctx_flush(self.core, ctx or self.ctx, even_empty)
        return number

    def cancels(self) -> list[int]:
        user_data, found = ffi.new("uint64_t *"), []
        while lib.zc_next_cancel(self.core, user_data):
            found.append(user_data[0])
        return found

    def broken(self) -> list[tuple[int, int]]:
        fd, reset, found = ffi.new("int *"), ffi.new("int *"), []
        while lib.zc_next_broken(self.core, fd, reset):
            found.append((fd[0], reset[0]))
        return found

    def events(self) -> list[tuple[int, ...]]:
        out, found = ffi.new("int64_t[4]"), []
        while lib.zc_events(self.core, out, 1):
            found.append(tuple(out))
        return found

    def stats(self, name: str) -> int:
        stats = ffi.new("struct zc_stats *")
        lib.zc_core_stats(self.core, stats)
        value: int = getattr(stats, name)
        return value

    def ctx_stats(self, *names: str) -> tuple[int, ...]:
        stats = ffi.new("struct zc_ctx_stats *")
        assert lib.zc_ctx_get_stats(self.ctx, stats) == 0
        return tuple(getattr(stats, name) for name in names)

    def finish(self) -> None:
        """Everything can be completed and freed: nothing leaked, nothing was counted twice."""
        for ctx in self.ctxs:
            self.flush(ctx)
        views = []
        while view := self.take():
            views.append(view)
            self.result(view, view.bytes, MORE if view.zero_copy else 0)
        for view in views:
            if view.zero_copy:
                self.notify(view)
        self.broken()
        self.events()
        for ctx in self.ctxs:
            assert lib.zc_ctx_free(self.core, ctx) == 0
        for sock in self.socks:
            assert lib.zc_sock_free(self.core, sock) == 0
        assert self.stats("generations_open") == 0
        assert self.stats("allocations") == 0


def released(number: int, ctx: int = CTX) -> tuple[int, ...]:
    return (RELEASED, ctx, number, 0)


def failed(error: int, ctx: int = CTX, sock: int = SOCK) -> tuple[int, ...]:
    return (FAILED, ctx, sock, error)


def idle(sock: int = SOCK) -> tuple[int, ...]:
    return (IDLE, sock, 0, 0)


def small(queues: list[Queue], slabs: int, **ctx: int) -> Queue:
    queues.append(q := Queue(threshold=1 << 17, **ctx))
    q.stage(slabs)
    return q


def send_bytes(q: Queue, data: bytes, ctx: Any = None) -> int:
    """Send bytes and overwrite the memory at once, as the caller of a staged send may do."""
    memory = ffi.new("char[]", data)
    sent: int = lib.zc_queue(q.core, ctx or q.ctx, q.sock, memory, len(data), 0)
    ffi.buffer(memory)[:] = bytes(len(data) + 1)
    return sent
