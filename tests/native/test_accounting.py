"""The native accounting against the model, driven by injected completions.

A longer run: ZC_TEST_EXAMPLES=20000 ZC_TEST_STEPS=120 pytest tests/native (then not derandomized).
"""

from __future__ import annotations

import errno
import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, precondition, rule

from tests.native.machine import CONTENT, MEMORY, Machine, mostly, pick, taken
from tests.native.model_state import (
    ALWAYS,
    AUTO,
    DATAGRAM,
    FLUSH,
    MUTABLE,
    NEVER,
    REPORT,
    STREAM,
    UNSTAGED,
    Ctx,
    Piece,
    Sock,
)
from zc_anyio._native._zc import ffi, lib

# Registered memory in the content, as pools have it: two regions that touch, and one apart.
REGIONS = [range(1000, 5000), range(5000, 9000), range(400_000, 800_000)]
EDGES = [980, 1000, 1001, 2000, 4990, 5000, 8990, 9000, 20_000, 399_990, 400_000, 799_990]

sizes = (
    st.sampled_from([7, 50, 59])
    | st.integers(1, 300)
    | st.sampled_from([1, 2, 50, 199, 200, 201, 0, 4096, 65535, 65536, 100_000, 300_000, 1_000_000])
)
some_sizes = st.lists(sizes, min_size=1, max_size=5)
vectors = st.lists(st.sampled_from([0, 0, 1, 2, 7, 40]), min_size=2, max_size=6) | st.builds(
    lambda size, count: [size] * count, st.integers(1, 3), st.sampled_from([100, 127, 128, 300])
)
flags = st.sampled_from(
    [0] * 6 + [MUTABLE] * 6 + [UNSTAGED, REPORT, FLUSH, FLUSH | MUTABLE] + [UNSTAGED] * 3
)
datagrams = st.lists(
    st.sampled_from([0, 1, 7, 40, 40, 40, 300, 300, 3000, 70_000]), min_size=1, max_size=9
)
segments = st.sampled_from([1, 3, 7, 40, 100, 100, 299, 1472, 32_753, 32_754, 65_535, 65_536, 0])
# Parts that lie at edges of registered memory, each behind the one before it or elsewhere.
neighbours = st.lists(
    st.tuples(
        st.sampled_from([None, None, *EDGES]), st.sampled_from([0, 1, 5, 10, 20, 1000, 3000])
    ),
    min_size=1,
    max_size=7,
)
# What breaks sockets is rare: a broken one takes part in nothing more.
disturbances = st.sampled_from(["told"] * 5 + ["fail", "reset", "reset mutable"])
# Allocations that may still succeed; few make a send fail half-way.
budgets = st.sampled_from([-1] * 12 + [0, 1, 2, 3])
contexts: dict[str, Any] = {
    "first": st.sampled_from([0, 2**32 - 1, 2**59]),
    "window": st.sampled_from([1, 200, 2000, 1 << 20, 1 << 24, 1 << 24]),
    "policy": st.sampled_from([AUTO, AUTO, ALWAYS, NEVER]),
    "threshold": st.sampled_from([0, 100, 1 << 17]),
    "by_hand": st.sampled_from([False, False, True]),
    "until_taken": st.sampled_from([False, False, True]),
}


class Accounting(Machine):
    @initialize(
        first_sequence=st.sampled_from([0, 2**32 - 2, 2**32 - 1]),
        max_requests=st.sampled_from([1, 3, 200, 200, 200]),
        slabs=st.sampled_from([0, 1, 3, 20, 20]),
        window=contexts["window"],
        threshold=st.sampled_from([60, 60, 400, 1 << 17]),
        linger=st.sampled_from([0, 0, 1, 10]),
        regions=st.sampled_from([True, True, False]),
    )
    def start(
        self,
        first_sequence: int,
        max_requests: int,
        slabs: int,
        window: int,
        threshold: int,
        linger: int,
        regions: bool,
    ) -> None:
        self.begin(first_sequence, max_requests, slabs)
        for index, region in enumerate(REGIONS if regions else []):
            memory = (MEMORY + region.start, len(region))
            assert lib.zc_core_add_region(self.core, *memory) == index
            self.model.regions.append(region)
        self.set_linger(linger)
        self.new_context(0, 1 << 24, AUTO if slabs else ALWAYS, threshold, False, False)
        self.new_context(0, window, AUTO, threshold if slabs else 0, False, False)
        for kind in (STREAM, STREAM, DATAGRAM):
            self.new_socket(kind, True)

    def next_id(self) -> int:
        self.ids += 1
        return self.ids

    def ctx(self, n: int) -> Ctx:
        return self.model.contexts[n % len(self.model.contexts)]

    def sock(self, n: int) -> Sock:
        return self.model.sockets[n % len(self.model.sockets)]

    def target(self, n: int) -> Sock:
        """A socket to send to: mostly a whole one, and mostly one of the first two."""
        whole = [sock for sock in self.model.sockets if not sock.error]
        if n % 8 < 5 and whole:
            return whole[n % 8 % 2 % len(whole)]
        return self.sock(n)

    # --- contexts and sockets

    @precondition(lambda self: len(self.model.contexts) < 4)
    @rule(**contexts)
    def new_context(
        self,
        first: int,
        window: int,
        policy: int,
        threshold: int,
        by_hand: bool,
        until_taken: bool,
    ) -> None:
        ctx = Ctx(self.next_id(), first, window, policy, threshold, by_hand, until_taken)
        self.ctxs[ctx] = lib.zc_ctx_new(self.core, ctx.id, first, window, policy, threshold)
        if by_hand:
            assert lib.zc_ctx_by_hand(self.ctxs[ctx]) == 0
        if until_taken:
            assert lib.zc_ctx_until_taken(self.ctxs[ctx]) == 0
        self.model.contexts.append(ctx)

    @precondition(lambda self: len(self.model.sockets) < 8)
    @rule(kind=st.sampled_from([STREAM, DATAGRAM]), zero_copy=mostly)
    def new_socket(self, kind: int, zero_copy: bool) -> None:
        sock = Sock(self.next_id(), kind, zero_copy)
        # Its descriptor is only handed through; here it is made of the id, so as to be recognized.
        self.socks[sock] = lib.zc_sock_new(self.core, sock.id, sock.id & 0xFFFF, kind, zero_copy)
        sock.takes_trains = kind == DATAGRAM
        assert lib.zc_sock_take_trains(self.socks[sock], sock.takes_trains) == 0
        self.model.sockets.append(sock)
        self.taken[sock], self.messages[sock] = [], []

    @precondition(lambda self: len(self.model.contexts) > 1 and len(self.model.sockets) > 1)
    @rule(n=pick, of=st.booleans())
    def free(self, n: int, of: bool) -> None:
        if of:
            ctx = self.ctx(n)
            expected = self.model.free_ctx(ctx)
            assert lib.zc_ctx_free(self.core, self.ctxs[ctx]) == expected
            if not expected:
                del self.ctxs[ctx]
        else:
            sock = self.sock(n)
            expected = self.model.free_sock(sock)
            assert lib.zc_sock_free(self.core, self.socks[sock]) == expected
            if not expected:
                self.check_bytes(sock)
                del self.socks[sock], self.taken[sock], self.messages[sock]

    @rule(n=pick, how=disturbances)
    def disturb(self, n: int, how: str) -> None:
        if how == "fail":
            sock = self.sock(n)
            self.model.break_sock(sock, errno.ECONNRESET)
            assert lib.zc_sock_fail(self.core, self.socks[sock], errno.ECONNRESET) == 0
        elif how == "told":
            self.broken_sockets()
        else:
            ctx, only_mutable = self.ctx(n), how == "reset mutable"
            expected = self.model.reset(ctx, errno.ETIMEDOUT, only_mutable)
            args = (self.core, self.ctxs[ctx], errno.ETIMEDOUT, only_mutable)
            assert lib.zc_ctx_reset(*args) == expected

    @rule(n=pick)
    def cancel_context(self, n: int) -> None:
        ctx = self.ctx(n)
        self.model.cancel(ctx)
        assert lib.zc_ctx_cancel(self.core, self.ctxs[ctx]) == 0

    @precondition(lambda self: self.model.linger or self.model.lingering)
    @rule(ticks=st.sampled_from([0, 1, 1, 5, 9, 10, 11]))
    def advance(self, ticks: int) -> None:
        self.model.advance(ticks)
        assert lib.zc_core_advance(self.core, self.model.now) == 0

    @precondition(lambda self: self.model.linger)
    @rule(ticks=st.sampled_from([0, 1, 10, 10, 20]))
    def set_linger(self, ticks: int) -> None:
        self.model.set_linger(ticks)
        assert lib.zc_core_linger(self.core, ticks) == 0

    @rule(n=pick)
    def tell_idle(self, n: int) -> None:
        sock = self.sock(n)
        expected = self.model.tell_idle(sock)
        assert lib.zc_sock_tell_idle(self.core, self.socks[sock]) == expected

    # --- sends

    def send_pieces(self, ctx: Ctx, sock: Sock, pieces: list[Piece], flags: int) -> None:
        expected = self.model.send(ctx, sock, pieces, flags)
        common = (self.core, self.ctxs[ctx], self.socks[sock])
        if len(pieces) == 1:
            sent = lib.zc_queue(*common, MEMORY + pieces[0][0], pieces[0][1], flags)
        else:
            data = [MEMORY + offset for offset, _ in pieces]
            lengths = [size for _, size in pieces]
            sent = lib.zc_queue_vector(*common, data, lengths, len(pieces), flags)
        self.set_budget(-1)
        assert sent == expected
        if sent >= 0:
            self.messages[sock].append(b"".join(map(self.model.read, pieces)))
            assert lib.zc_ctx_ticket(self.ctxs[ctx]) == ctx.totals["sends"]

    @rule(c=pick, s=pick, lengths=some_sizes, f=flags, b=budgets, take=taken)
    def send(self, c: int, s: int, lengths: list[int], f: int, b: int, take: int) -> None:
        """Some sends to one socket, of one context or of one after the other."""
        self.set_budget(b)
        for i, size in enumerate(lengths):
            piece = ((c * 31 + s + i * 1000) % (len(CONTENT) - size), size)
            self.send_pieces(self.ctx(c + i * (s % 3 == 0)), self.target(s), [piece], f)
        self.submit(take, 0)

    @rule(c=pick, s=pick, lengths=vectors, f=flags, b=budgets, take=taken)
    def sendv(self, c: int, s: int, lengths: list[int], f: int, b: int, take: int) -> None:
        self.set_budget(b)
        pieces = [(c + s + 100 * i, size) for i, size in enumerate(lengths)]
        self.send_pieces(self.ctx(c), self.target(s), pieces, f)
        self.submit(take, 0)

    @rule(c=pick, s=pick, parts=neighbours, f=flags, b=budgets, take=taken)
    def send_neighbours(
        self, c: int, s: int, parts: list[tuple[int | None, int]], f: int, b: int, take: int
    ) -> None:
        """Parts of registered and other memory, as one send or one after another."""
        pieces: list[Piece] = []
        for start, size in parts:
            pieces.append((sum(pieces[-1]) if start is None and pieces else start or 1000, size))
        self.set_budget(b)
        if s % 4:
            self.send_pieces(self.ctx(c), self.target(s), pieces, f)
        else:
            for piece in pieces:
                self.send_pieces(self.ctx(c), self.target(s), [piece], f)
        self.submit(take, 0)

    @precondition(lambda self: any(sock.kind == DATAGRAM for sock in self.model.sockets))
    @rule(c=pick, s=pick, lengths=datagrams, size=segments, f=flags, b=budgets, take=taken)
    def send_trains(
        self, c: int, s: int, lengths: list[int], size: int, f: int, b: int, take: int
    ) -> None:
        """What lies in some buffers as datagrams of a size, or each of them as one."""
        to = [sock for sock in self.model.sockets if sock.kind == DATAGRAM]
        ctx, sock = self.ctx(c), to[s % len(to)]
        pieces = [(c + s + 300 * i, length) for i, length in enumerate(lengths)]
        data = [MEMORY + offset for offset, _ in pieces]
        common = (self.core, self.ctxs[ctx], self.socks[sock], data, lengths, len(pieces))
        self.set_budget(b)
        if s % 2:
            total = sum(lengths)
            start = c % (total + 1)
            part = (total - start) * (s % 5) // 4
            expected = self.model.send_segments(
                ctx, sock, pieces, range(start, start + part), size, f
            )
            sent = lib.zc_queue_segments(*common, start, part, size, f, ffi.NULL, 0)
        else:
            count = ffi.new("size_t *")
            expected, many = self.model.queue_many(ctx, sock, pieces, f)
            sent = lib.zc_queue_many(*common, f, ffi.NULL, 0, count)
            assert count[0] == many
        self.set_budget(-1)
        assert sent == expected
        self.submit(take, 0)

    @rule(c=pick, chosen=st.lists(pick, min_size=1, max_size=5), size=sizes, f=flags, b=budgets)
    def broadcast(self, c: int, chosen: list[int], size: int, f: int, b: int) -> None:
        self.set_budget(b)
        ctx, socks, size = self.ctx(c), [self.target(n) for n in chosen], size or 1
        offset = (c * 7) % (len(CONTENT) - size)
        expected, expected_errors = self.model.broadcast(ctx, socks, (offset, size), f)
        handles, errors = [self.socks[sock] for sock in socks], ffi.new("int32_t[]", len(socks))
        args = (handles, len(socks), MEMORY + offset, size, f, errors)
        assert lib.zc_broadcast(self.core, self.ctxs[ctx], *args) == expected
        self.set_budget(-1)
        if expected_errors:
            assert list(errors) == expected_errors
        for sock, error in zip(socks, expected_errors, strict=False):
            if not error:
                self.messages[sock].append(self.model.read((offset, size)))

    @rule(n=pick, even_empty=st.booleans(), budget=budgets)
    def flush(self, n: int, even_empty: bool, budget: int) -> None:
        self.set_budget(budget)
        ctx = self.ctx(n)
        expected = self.model.flush(ctx, even_empty)
        assert lib.zc_ctx_flush(self.core, self.ctxs[ctx], even_empty) == expected
        self.set_budget(-1)


examples = os.environ.get("ZC_TEST_EXAMPLES")
# Longer than other tests may take: a failure is reduced to its shortest sequence first.
TestAccounting = pytest.mark.timeout(600)(Accounting.TestCase)
TestAccounting.settings = settings(
    max_examples=int(examples or 800),
    stateful_step_count=int(os.environ.get("ZC_TEST_STEPS", "60")),
    derandomize=examples is None,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
