"""What the native accounting has to do, said in plain Python.

The model keeps every fact once (a send is owed by its queue, covered by requests, or neither) and
derives the rest by looking, where the C keeps lists and counters.  It predicts each answer of the
C, the content of each request, and which events may be told and which may not be told yet.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator

from tests.native.model_state import (
    COPIED,
    DATAGRAM,
    DENIED_REQUESTS,
    FAILED,
    FALLS_BACK,
    GATHER_BUFFERS,
    GATHER_BYTES,
    IDLE,
    KICK,
    MORE,
    NOTIF,
    RELEASED,
    RETRIED,
    ROLL_SENDS,
    ROLL_SHARE,
    SENT_SHIFT,
    STREAM,
    TURN,
    TURN_BYTES,
    TURN_SENDS,
    WINDOW,
    Ctx,
    Event,
    Gen,
    Piece,
    Req,
    Send,
    Sock,
    cut,
)


class Model:
    def __init__(self, max_requests: int) -> None:
        self.max_requests = max_requests
        self.contexts: list[Ctx] = []
        self.sockets: list[Sock] = []
        self.requests: list[Req] = []
        self.totals: Counter[str] = Counter()
        self.denied = self.waiting_bytes = self.waiting_sends = 0
        self.budget = -1
        # What may be told now; a failure is kept as its send.
        self.failures: list[Send] = []
        self.windows: set[Ctx] = set()
        self.idles: set[Sock] = set()
        self.cancels: set[Req] = set()
        self.broken: set[Sock] = set()

    # --- what can be seen from outside

    @property
    def live_sends(self) -> Iterator[Send]:
        return (send for ctx in self.contexts for send in ctx.unreleased)

    def stats(self) -> dict[str, int]:
        live = list(self.live_sends)
        flying = sum(send.flying for send in live)
        queued = sum(send.owed and not send.flying for send in live)
        counted = "sends bytes_sent zero_copied copied failed generations_released requests"
        return {key: self.totals[key] for key in f"{counted} completions strays".split()} | {
            "staged": 0,
            "queued": queued,
            "in_flight": flying,
            "held": len(live) - queued - flying,
            "generations_open": sum(not gen.released for c in self.contexts for gen in c.gens),
            "contexts": len(self.contexts),
            "sockets": len(self.sockets),
        }

    def ctx_stats(self, ctx: Ctx) -> dict[str, int]:
        counted = "sends bytes_sent zero_copied copied failed generations_released"
        return {key: ctx.totals[key] for key in counted.split()} | {
            "staged": 0,
            "unreleased_sends": len(ctx.unreleased),
            "unreleased_bytes": ctx.unreleased_bytes,
            "generations_open": sum(not gen.released for gen in ctx.gens),
        }

    def told(self, event: Event) -> None:
        """Takes an event that the C tells; fails if it is not due."""
        kind, a, b, c = event
        if kind == FAILED:
            # Those of one socket fail in the order of its queue, so the oldest is the one meant.
            due = [s for s in self.failures if (s.gen.ctx.id, s.sock.id, s.error) == (a, b, c)]
            assert due, f"no such failure is due: {event}"
            self.failures.remove(due[0])
        elif kind == RELEASED:
            (ctx,) = [ctx for ctx in self.contexts if ctx.id == a]
            gens = [gen for gen in ctx.gens if gen.number == b]
            assert len(gens) == 1, f"released twice, or never made: {event}"
            assert gens[0].flushed, f"released while open: {event}"
            assert all(send.retired for send in gens[0].sends), f"released too early: {event}"
            assert not any(s.gen is gens[0] for s in self.failures), "released before its failures"
            gens[0].told = True
            ctx.gens.remove(gens[0])
        elif kind == WINDOW:
            (ctx,) = [ctx for ctx in self.windows if ctx.id == a]
            self.windows.remove(ctx)
        else:
            assert kind == IDLE
            (sock,) = [sock for sock in self.idles if sock.id == a]
            self.idles.remove(sock)

    def untold(self) -> int:
        gens = sum(gen.released for ctx in self.contexts for gen in ctx.gens)
        return gens + len(self.failures) + len(self.windows) + len(self.idles)

    # --- contexts and sockets

    def count(self, ctx: Ctx, key: str, amount: int = 1) -> None:
        self.totals[key] += amount
        ctx.totals[key] += amount

    def allocate(self, amount: int) -> bool:
        if 0 <= self.budget < amount:
            self.budget = 0
            return False
        self.budget -= amount if self.budget > 0 else 0
        return True

    def open_gen(self, ctx: Ctx) -> Gen:
        if not ctx.open:
            ctx.gens.append(Gen(ctx, ctx.next_generation))
            ctx.next_generation += 1
        return ctx.gens[-1]

    def end_gen(self, gen: Gen) -> None:
        gen.flushed = True
        if gen.released:
            self.count(gen.ctx, "generations_released")

    def flush(self, ctx: Ctx, even_empty: bool) -> int:
        if not ctx.open:
            if not even_empty:
                return -errno.ENODATA
            if not self.allocate(1):
                return -errno.ENOMEM
        gen = self.open_gen(ctx)
        self.end_gen(gen)
        return gen.number

    def free_ctx(self, ctx: Ctx) -> int:
        if ctx.gens:
            return -errno.EBUSY
        self.contexts.remove(ctx)
        self.windows.discard(ctx)
        return 0

    def free_sock(self, sock: Sock) -> int:
        if not sock.idle or any(send.sock is sock for send in self.failures):
            return -errno.EBUSY
        self.sockets.remove(sock)
        self.idles.discard(sock)
        self.broken.discard(sock)
        return 0

    def cancel(self, ctx: Ctx) -> None:
        sends = ctx.unreleased
        for send in sends:
            send.cancelled = True
        for sock in {send.sock for send in sends}:
            self.sweep(sock)

    def reset(self, ctx: Ctx, error: int, only_mutable: bool) -> int:
        sends = [send for send in ctx.unreleased if send.mutable or not only_mutable]
        for send in sends:
            send.cancelled |= send.sock.kind == DATAGRAM
        socks = {send.sock for send in sends}
        for sock in socks:
            if sock.kind == DATAGRAM:
                self.sweep(sock)
            else:
                self.break_sock(sock, error, reset=True)
        return len(socks)

    # --- sends

    def window_full(self, ctx: Ctx, size: int) -> bool:
        used = ctx.unreleased_bytes
        if used == 0 or used + size <= ctx.window:
            return False
        ctx.wanted = min(ctx.wanted or size or 1, size or 1)
        return True

    def enqueue(self, ctx: Ctx, sock: Sock, pieces: list[Piece], weight: int, mutable: bool) -> int:
        if not self.allocate(1 + (len(pieces) > 1) + (ctx.open is None)):
            return -errno.ENOMEM
        gen = self.open_gen(ctx)
        send = Send(gen, sock, pieces, weight, mutable)
        gen.sends.append(send)
        gen.bytes += weight
        sock.accepted.append(send)
        sock.queue.append(send)
        self.idles.discard(sock)
        self.count(ctx, "sends")
        self.waiting_bytes += send.size
        self.waiting_sends += 1
        sent = gen.number << SENT_SHIFT
        if self.waiting_bytes >= TURN_BYTES or self.waiting_sends >= TURN_SENDS:
            return sent | TURN
        return sent | KICK if self.waiting_sends == 1 else sent

    def roll(self, ctx: Ctx) -> None:
        gen = ctx.open
        if gen and (gen.bytes >= ctx.window // ROLL_SHARE or len(gen.sends) >= ROLL_SENDS):
            self.end_gen(gen)

    def send(self, ctx: Ctx, sock: Sock, pieces: list[Piece], mutable: bool) -> int:
        size = sum(size for _, size in pieces)
        if sock.kind == STREAM and size == 0:
            return -errno.EINVAL
        if sock.kind == DATAGRAM and size > 0xFFFF:
            return -errno.EMSGSIZE
        if sock.error:
            return -errno.EPIPE
        if self.window_full(ctx, size):
            return -errno.EAGAIN
        sent = self.enqueue(ctx, sock, pieces, size, mutable)
        self.roll(ctx)
        return sent

    def broadcast(
        self, ctx: Ctx, socks: list[Sock], piece: Piece, mutable: bool
    ) -> tuple[int, list[int]]:
        if self.window_full(ctx, piece[1]):
            return -errno.EAGAIN, []
        sent, errors = -errno.EPIPE, []
        for sock in socks:
            if sock.error:
                one = -errno.EPIPE
            elif sock.kind == DATAGRAM and piece[1] > 0xFFFF:
                one = -errno.EMSGSIZE
            else:
                one = self.enqueue(ctx, sock, [piece], piece[1] // len(socks) + 1, mutable)
            errors.append(-min(one, 0))
            if one >= 0:
                sent = one if sent < 0 else sent | one
        self.roll(ctx)
        return sent, errors

    # --- requests

    def wants_zero_copy(self, send: Send) -> bool:
        return (
            send.size >= send.gen.ctx.threshold
            and send.sock.can_zero_copy
            and not send.force_copy
            and not self.denied
        )

    def may_build(self) -> bool:
        return len(self.requests) < self.max_requests and any(s.ready for s in self.sockets)

    def nothing_built(self) -> None:
        if not any(sock.ready for sock in self.sockets):
            self.waiting_bytes = self.waiting_sends = 0

    def build(self, sock: Sock) -> Req:
        """The one request that the C may make of this socket now."""
        assert sock.ready, f"socket {sock.id} may have nothing submitted now"
        req = Req(sock, [], [], self.wants_zero_copy(sock.queue[0]))
        for send in sock.queue:
            full = req.bytes >= GATHER_BYTES or len(req.pieces) >= GATHER_BUFFERS
            other = self.wants_zero_copy(send) != req.zero_copy
            if req.sends and (sock.kind == DATAGRAM or full or other):
                break
            pieces = cut(send.pieces, send.done, send.size) if send.size else send.pieces
            room = GATHER_BUFFERS - len(req.pieces) if sock.kind == STREAM else len(pieces)
            req.pieces += pieces[:room]
            req.sends.append(send)
            if len(pieces) > room:
                break
        for send in req.sends:
            send.flying = True
            send.requests += 1
            if sock.kind == DATAGRAM:
                sock.queue.remove(send)
        self.denied -= self.denied > 0
        self.totals["requests"] += 1
        sock.requests.append(req)
        self.requests.append(req)
        return req

    # --- completions

    def complete(self, req: Req | None, result: int, flags: int) -> int:
        notif = bool(flags & NOTIF)
        if req is None or req not in self.requests:
            self.totals["strays"] += 1
            return -errno.ESTALE
        if req.notif_seen if notif else req.result_seen:
            self.totals["strays"] += 1
            return -errno.EPROTO
        self.totals["completions"] += 1
        if notif:
            req.notif_seen, req.copied = True, bool(flags & COPIED)
        else:
            req.result_seen, req.expects_notif = True, bool(flags & MORE)
            self.cancels.discard(req)
            for send in req.sends:
                send.flying = False
            if req.sock.kind == STREAM:
                self.stream_result(req, result)
            else:
                self.datagram_result(req, result)
        if req.result_seen and (req.notif_seen or not req.expects_notif):
            self.end_request(req)
        return 0

    def end_request(self, req: Req) -> None:
        self.requests.remove(req)
        req.sock.requests.remove(req)
        for index, send in enumerate(req.sends):
            # A report of copying is about what this request took: nothing, if it failed.
            send.copied |= req.copied and index < req.touched
            send.requests -= 1
            self.retire(send)

    def stream_result(self, req: Req, result: int) -> None:
        sock, taken = req.sock, min(max(result, 0), req.bytes)
        self.totals["bytes_sent"] += taken
        for send in req.sends:
            part = min(taken, send.size - send.done)
            taken -= part
            send.done += part
            send.gen.ctx.totals["bytes_sent"] += part
            req.touched += part > 0
            send.copied |= part > 0 and not req.zero_copy
            if send.done == send.size:
                self.leave_queue(send)
        error = errno.EIO if result == 0 else -min(result, 0)
        if error and error not in RETRIED and not self.falls_back(req, error):
            self.break_sock(sock, error)
        elif sock.error:
            self.break_sock(sock, sock.error)
        else:
            self.sweep(sock)

    def datagram_result(self, req: Req, result: int) -> None:
        (send,), sock, error = req.sends, req.sock, -min(result, 0)
        if not error:
            self.count(send.gen.ctx, "bytes_sent", send.size)
            send.done, req.touched = send.size, 1
            send.copied |= not req.zero_copy
            self.leave_queue(send)
        elif send.cancelled or sock.error:
            # The reason is what broke the socket, not the cancellation that followed from it.
            self.fail_send(send, sock.error if sock.error and error in RETRIED else error)
        elif error in RETRIED or self.falls_back(req, error):
            sock.queue.insert(0, send)
        else:
            self.fail_send(send, error)

    def falls_back(self, req: Req, error: int) -> bool:
        if not req.zero_copy or error not in FALLS_BACK:
            return False
        if error == errno.EOPNOTSUPP:
            req.sock.can_zero_copy = False
        else:
            self.denied = DENIED_REQUESTS
        for send in req.sends:
            send.force_copy = True
        return True

    def sweep(self, sock: Sock) -> None:
        """Drops the cancelled sends of a queue; cancels the requests that cover one."""
        for req in sock.in_flight:
            if any(send.cancelled for send in req.sends):
                self.cancels.add(req)
        for send in list(sock.queue):
            if send.cancelled and not send.flying:
                if send.done:
                    self.break_sock(sock, errno.ECANCELED)
                    return
                self.fail_send(send, errno.ECANCELED)

    def break_sock(self, sock: Sock, error: int, reset: bool = False) -> None:
        sock.error = sock.error or error
        self.broken.add(sock)
        if reset and not sock.reset:
            sock.reset = True
            for send in sock.accepted:
                if not (send.owed or send.retired or send.flying):
                    self.note_failure(send, error)  # what is held is lost with the connection
        self.cancels.update(sock.in_flight)
        # What is in flight on a stream decides how much of the next send was taken: wait for it.
        if sock.kind == DATAGRAM or not sock.in_flight:
            for send in list(sock.queue):
                self.fail_send(send, sock.error)

    def note_failure(self, send: Send, error: int) -> None:
        if not send.error:
            send.error = error
            self.count(send.gen.ctx, "failed")
            if not send.cancelled:
                self.failures.append(send)

    def fail_send(self, send: Send, error: int) -> None:
        self.note_failure(send, error)
        self.leave_queue(send)

    def leave_queue(self, send: Send) -> None:
        send.owed = False
        if send in send.sock.queue:
            send.sock.queue.remove(send)
        self.retire(send)

    def retire(self, send: Send) -> None:
        if not send.retired:
            return
        ctx = send.gen.ctx
        if not send.error:
            self.count(ctx, "copied" if send.copied else "zero_copied")
        if send.gen.released:
            self.count(ctx, "generations_released")
        used = ctx.unreleased_bytes
        if ctx.wanted and (used == 0 or used + ctx.wanted <= ctx.window):
            ctx.wanted = 0
            self.windows.add(ctx)
        if send.sock.idle:
            self.idles.add(send.sock)
