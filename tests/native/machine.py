"""The kernel's part of the test of the accounting: requests, completions, events."""

from __future__ import annotations

import errno
import random
import sys
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.native.model import Model
from tests.native.model_state import (
    COPIED,
    DATAGRAM,
    MORE,
    MUTABLE,
    NOTIF,
    STAGE_SLAB,
    STREAM,
    Ctx,
    Piece,
    Req,
    Sock,
)
from zc_anyio._native._zc import ffi, lib

# Sends are cut from the content; staging memory follows it.
CONTENT = random.Random(1).randbytes(1 << 20)
MEMORY = ffi.new("char[]", len(CONTENT) + 20 * STAGE_SLAB)
VIEW = memoryview(ffi.buffer(MEMORY)).cast("B")
VIEW[: len(CONTENT)] = CONTENT
BASE = int(ffi.cast("uintptr_t", MEMORY))
FATAL = [errno.EPIPE, errno.ECONNRESET, errno.EFAULT, errno.EMSGSIZE, errno.EMSGSIZE, errno.EBADF]
DENIED = [errno.ENOMEM, errno.ENOBUFS, errno.EOPNOTSUPP]
AGAIN = [errno.EAGAIN, errno.EINTR, errno.ECANCELED]
pick = st.integers(0, 1 << 16)
mostly = st.sampled_from([True, True, True, False])
# Hypothesis leaves out rules at random, different ones each time.  Without requests and results
# nothing happens, so more than one rule makes them.
taken = st.sampled_from([0, 0, 1, 99])
# A share of what was asked for, in thousandths, or a negative errno; most errors end a socket, so
# they are rarer here than what goes on.
results = st.sampled_from([1000] * 6 + [1, 100, 333, 500, 900, 999]) | st.sampled_from(
    [-error for error in AGAIN * 5 + DENIED * 2 + FATAL] + [0]
)
answers = st.lists(results, min_size=1, max_size=6)


class Machine(RuleBasedStateMachine):
    """A core and its model, which do the same."""

    def begin(self, first_sequence: int, max_requests: int, slabs: int) -> None:
        self.core = lib.zc_core_new(first_sequence, max_requests)
        self.model = Model(VIEW, BASE, max_requests, slabs, len(CONTENT))
        if slabs:
            staging = (MEMORY + len(CONTENT), slabs * STAGE_SLAB)
            assert lib.zc_core_stage(self.core, *staging) == 0
        self.ctxs: dict[Ctx, Any] = {}
        self.socks: dict[Sock, Any] = {}
        self.ids = 1 << 40
        self.used: set[int] = set()  # user_data that was ever given out
        self.vectors: dict[Req, list[Piece]] = {}
        self.contents: dict[Req, bytes] = {}
        self.taken: dict[Sock, list[bytes]] = {}
        # What the program has sent, as it called it.
        self.messages: dict[Sock, list[bytes]] = {}
        self.asked: list[Req] = []  # cancellations that the driver was asked for

    def set_budget(self, budget: int) -> None:
        self.model.budget = budget
        lib.zc_core_alloc_budget(self.core, budget)

    def next_request(self) -> bool:
        view = ffi.new("struct zc_request_view *")
        if not lib.zc_next_request(self.core, view):
            assert not self.model.may_build()
            self.model.nothing_built()
            return False
        assert len(self.model.requests) < self.model.max_requests
        (sock,) = [sock for sock in self.model.sockets if sock.id == view.socket]
        before = {send: send.done for send in sock.queue}
        req = self.model.build(sock)
        got = (view.bytes, view.buffers, view.sends, bool(view.zero_copy), view.segment)
        segment = req.sends[0].segment
        assert got == (req.bytes, len(req.pieces), len(req.sends), req.zero_copy, segment)
        assert view.user_data not in self.used
        self.used.add(view.user_data)
        req.user_data = view.user_data
        self.vectors[req] = self.vector(req)
        rest = b"".join(send.content[before[send] :] for send in req.sends)
        self.contents[req] = rest[: req.bytes]
        self.check_content(req)
        return True

    def vector(self, req: Req) -> list[Piece]:
        """Where the kernel would read: offsets and sizes in the memory."""
        count = len(req.pieces)
        addresses, lengths = ffi.new("uint64_t[]", count), ffi.new("uint64_t[]", count)
        args = (self.core, req.user_data, addresses, lengths, count)
        assert lib.zc_request_vector(*args) == count
        return [(a - BASE, n) for a, n in zip(addresses, lengths, strict=True)]

    def check_content(self, req: Req) -> None:
        """What the kernel can read through the request is what the sends were called with."""
        readable = b"".join(VIEW[start : start + size] for start, size in self.vectors[req])
        assert readable == self.contents[req]

    @rule(count=taken, starved=st.integers(0, 7))
    def submit(self, count: int, starved: int) -> None:
        if starved == 7:
            view = ffi.new("struct zc_request_view *")
            lib.zc_core_alloc_budget(self.core, 0)
            assert lib.zc_next_request(self.core, view) == 0
            lib.zc_core_alloc_budget(self.core, -1)
            self.model.nothing_built()
        while count and self.next_request():
            count -= 1

    def complete(self, req: Req, result: int, flags: int) -> None:
        self.check_content(req)
        if not flags & NOTIF and result > 0 and not req.result_seen:
            self.taken[req.sock].append(self.contents[req][:result])
        expected = self.model.complete(req, result, flags)
        assert lib.zc_complete(self.core, req.user_data, result, flags) == expected

    def answer(self, req: Req, result: int, more: bool) -> None:
        if result > 0:
            whole = req.sock.kind == DATAGRAM
            result = req.bytes if whole else max(1, req.bytes * result // 1000)
        # Only a zero-copy request has a notification, and not each of those.
        self.complete(req, result, MORE if more and req.zero_copy else 0)

    @rule(n=pick, answers=answers, more=mostly)
    def result(self, n: int, answers: list[int], more: bool) -> None:
        for result in answers:
            waiting = [req for req in self.model.requests if not req.result_seen]
            if waiting:
                self.answer(waiting[n % len(waiting)], result, more)
            else:
                self.submit(99, 0)

    @rule(n=pick, answers=answers, copied=st.booleans(), early=st.integers(0, 9))
    def notification(self, n: int, answers: list[int], copied: bool, early: int) -> None:
        """Results and then notifications; also one that is early, as of a linked request."""
        waiting = [req for req in self.model.requests if req.zero_copy]
        if early == 9 and waiting:
            self.complete(waiting[n % len(waiting)], 0, NOTIF | (COPIED if copied else 0))
        self.result(n, answers[early % 3 :], True)
        for _ in answers:
            waiting = [req for req in self.model.requests if req.result_seen]
            if waiting:
                self.complete(waiting[n % len(waiting)], 0, NOTIF | (COPIED if copied else 0))

    @rule(n=pick, result=st.sampled_from([-errno.ECANCELED, -errno.ECANCELED, 300, 1000]))
    def cancellations(self, n: int, result: int) -> None:
        user_data = ffi.new("uint64_t *")
        while lib.zc_next_cancel(self.core, user_data):
            due = [req for req in self.model.cancels if req.user_data == user_data[0]]
            assert len(due) == 1, "a cancellation that nobody wants"
            self.model.cancels.remove(due[0])
            self.asked.append(due[0])
        assert not self.model.cancels
        self.asked = [req for req in self.asked if not req.result_seen]
        if self.asked:
            self.answer(self.asked[n % len(self.asked)], result, True)

    def broken_sockets(self) -> None:
        fd, reset = ffi.new("int *"), ffi.new("int *")
        while lib.zc_next_broken(self.core, fd, reset):
            (sock,) = [sock for sock in self.model.sockets if sock.id & 0xFFFF == fd[0]]
            assert sock.error
            assert bool(reset[0]) == sock.reset
            self.model.dealt_with(sock)
        assert not self.model.broken

    @rule(n=pick, sequence=st.integers(0, 2**32 - 1), flags=st.sampled_from([0, MORE, NOTIF]))
    def stray(self, n: int, sequence: int, flags: int) -> None:
        """A completion that nobody waits for: an old one, a doubled one, an invented one."""
        late = {req.user_data: req for req in self.model.requests}
        known = [*sorted(self.used), sequence << 32 | n, 2**64 - 1]
        user_data = known[n % len(known)]
        req = late.get(user_data)
        if req and not (req.notif_seen if flags & NOTIF else req.result_seen):
            return
        expected = self.model.complete(req, 0, flags)
        assert lib.zc_complete(self.core, user_data, 0, flags) == expected

    @rule(most=st.integers(1, 8))
    def events(self, most: int) -> None:
        self.take_events(most)

    def take_events(self, most: int) -> int:
        out = ffi.new("int64_t[]", 4 * most)
        count: int = lib.zc_events(self.core, out, most)
        assert count == min(most, self.model.untold())
        for i in range(0, 4 * count, 4):
            self.model.told((out[i], out[i + 1], out[i + 2], out[i + 3]))
        return count

    # --- what holds at all times, and at the end

    @invariant()
    def same_statistics(self) -> None:
        stats = ffi.new("struct zc_stats *")
        lib.zc_core_stats(self.core, stats)
        expected = self.model.stats()
        assert {key: getattr(stats, key) for key in expected} == expected
        ctx_stats = ffi.new("struct zc_ctx_stats *")
        for ctx, handle in self.ctxs.items():
            assert lib.zc_ctx_get_stats(handle, ctx_stats) == 0
            expected = self.model.ctx_stats(ctx)
            assert {key: getattr(ctx_stats, key) for key in expected} == expected
            mutable = sum(bool(send.flags & MUTABLE) for send in ctx.unreleased)
            assert lib.zc_ctx_unreleased(handle, 1) == mutable
        for sock, handle in self.socks.items():
            assert lib.zc_sock_error(handle) == sock.error
            assert lib.zc_sock_unsent(handle) == bool(sock.queue or sock.in_flight)

    def check_bytes(self, sock: Sock) -> None:
        """What was taken is the sends in the order of the calls, each as far as it got."""
        if sock.kind == STREAM:
            expected = b"".join(send.content[: send.done] for send in sock.accepted)
            assert b"".join(self.taken[sock]) == expected
            if not sock.error:
                self.check_messages(sock)

    def check_messages(self, sock: Sock) -> None:
        """A stream that is whole has brought messages of the program, and no part of one."""
        taken, ends = b"".join(self.taken[sock]), {0}
        for message in self.messages[sock]:
            # Each has arrived behind those before it, or was taken back.
            ends |= {end + len(message) for end in ends if taken.startswith(message, end)}
        assert len(taken) in ends

    def finish(self) -> None:
        for ctx, handle in self.ctxs.items():
            assert lib.zc_ctx_flush(self.core, handle, False) == self.model.flush(ctx, False)
        while self.next_request() or self.model.requests:
            for req in list(self.model.requests):
                if not req.result_seen:
                    self.answer(req, 1000, True)
            for req in reversed(self.model.requests[:]):
                self.complete(req, 0, NOTIF)
        self.broken_sockets()
        while self.take_events(8):
            pass
        assert self.model.untold() == 0
        self.same_statistics()
        for ctx, handle in self.ctxs.items():
            assert not ctx.gens
            assert lib.zc_ctx_free(self.core, handle) == 0
        for sock, handle in self.socks.items():
            self.check_bytes(sock)
            assert lib.zc_sock_free(self.core, handle) == 0
        stats = ffi.new("struct zc_stats *")
        lib.zc_core_stats(self.core, stats)
        assert (stats.allocations, stats.contexts, stats.sockets) == (0, 0, 0)
        assert (stats.queued, stats.in_flight, stats.held) == (0, 0, 0)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        # After a failed step that is the failure to report; what is left is freed as it is.
        if sys.exc_info()[0] is None:
            self.finish()
        assert lib.zc_core_free(self.core) == 0
