"""The model's half about contexts, generations and queues; requests follow in model.py."""

from __future__ import annotations

import errno

from tests.native.model_seen import Seen
from tests.native.model_state import (
    DATAGRAM,
    DATAGRAM_PAGES,
    FLUSH,
    KICK,
    LOOK_SENDS,
    MUTABLE,
    NEVER,
    REPORT,
    ROLL_SENDS,
    SENT_SHIFT,
    STAGE_SHARE,
    STAGE_SLAB,
    STAGED,
    STREAM,
    TURN,
    TURN_BYTES,
    TURN_BYTES_MOST,
    TURN_BYTES_STAGED,
    TURN_SENDS,
    WINDOW_SHARE,
    Ctx,
    Gen,
    Piece,
    Send,
    Sock,
)


class Queues(Seen):
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

    def roll(self, ctx: Ctx) -> None:
        gen = ctx.open
        if (
            gen
            and not ctx.by_hand
            and (gen.bytes >= ctx.window // WINDOW_SHARE or gen.total >= ROLL_SENDS)
        ):
            self.end_gen(gen)

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
        untold = any(send.sock is sock for send in self.failures) or sock in self.broken
        if not sock.idle or untold:
            return -errno.EBUSY
        self.sockets.remove(sock)
        self.idles.discard(sock)
        self.lingering.discard(sock)
        return 0

    def cancel(self, ctx: Ctx) -> None:
        sends = ctx.unreleased
        for send in sends:
            send.cancelled = True
        for sock in {send.sock for send in sends}:
            self.sweep(sock)

    def reset(self, ctx: Ctx, error: int, only_mutable: bool) -> int:
        sends = [send for send in ctx.unreleased if send.flags & MUTABLE or not only_mutable]
        for send in sends:
            send.cancelled |= send.sock.kind == DATAGRAM
        socks = {send.sock for send in sends}
        for sock in socks:
            if sock.kind == DATAGRAM:
                self.sweep(sock)
            else:
                self.break_sock(sock, error, reset=True)
        return len(socks)

    # --- taking sends

    def window_full(self, ctx: Ctx, size: int) -> bool:
        used = ctx.unreleased_bytes
        if used == 0 or used + size <= ctx.window:
            return False
        ctx.wanted = min(ctx.wanted or size or 1, size or 1)
        return True

    def send(self, ctx: Ctx, sock: Sock, pieces: list[Piece], flags: int) -> int:
        size = sum(size for _, size in pieces)
        if sock.kind == STREAM and size == 0:
            return -errno.EINVAL
        if sock.kind == DATAGRAM and size > 0xFFFF:
            return -errno.EMSGSIZE
        if sock.error:
            return -errno.EPIPE
        if self.window_full(ctx, size):
            return -errno.EAGAIN
        sent = -errno.ENOSPC
        small = ctx.policy != NEVER and size < ctx.threshold and not flags & ~MUTABLE
        if self.slabs and small and sock.kind == STREAM and len(pieces) == 1:
            sent = self.stage(ctx, sock, pieces[0])
        if sent == -errno.ENOSPC:
            sent = self.enqueue(ctx, sock, pieces, size, flags)
        self.roll(ctx)
        return sent

    def broadcast(
        self, ctx: Ctx, socks: list[Sock], piece: Piece, flags: int
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
                one = self.enqueue(ctx, sock, [piece], piece[1] // len(socks) + 1, flags)
            errors.append(-min(one, 0))
            if one >= 0:
                sent = one if sent < 0 else sent | one
        self.roll(ctx)
        return sent, errors

    def enqueue(self, ctx: Ctx, sock: Sock, pieces: list[Piece], weight: int, flags: int) -> int:
        if not self.allocate(1 + (len(pieces) > 1) + (ctx.open is None)):
            return -errno.ENOMEM
        content = b"".join(self.read(piece) for piece in pieces)
        parts, regions = self.parts(pieces)
        send = Send(self.open_gen(ctx), sock, parts, weight, flags, content)
        send.registered = any(region is not None for region in regions)
        send.region = regions[-1] if len(parts) == 1 else None
        send.force_copy = sock.kind == DATAGRAM and sum(map(self.pages, pieces)) > DATAGRAM_PAGES
        self.join(send)
        self.grow(send, len(content), weight, 1)
        send.ticket = ctx.totals["sends"]
        sent = self.sent(send)
        # Of a broadcast the bytes count once.
        self.waiting_bytes -= len(content) - weight
        return sent

    def region_of(self, piece: Piece) -> int | None:
        """The registered memory that a piece lies in whole."""
        for index, region in enumerate(self.regions):
            if piece[0] in region:
                return index if sum(piece) <= region.stop else None
        return None

    def pages(self, piece: Piece) -> int:
        """How many pages of 4 KiB a piece touches."""
        start = self.address + piece[0]
        return len(range(start // 4096, -(-(start + piece[1]) // 4096))) if piece[1] else 0

    def parts(self, pieces: list[Piece]) -> tuple[list[Piece], list[int | None]]:
        """The parts that are not empty, neighbours in one region as one; and each one's region."""
        parts: list[Piece] = []
        regions: list[int | None] = []
        for piece in [piece for piece in pieces if piece[1]] or pieces[:1]:
            region = self.region_of(piece) if piece[1] else None
            together = parts and region is not None and regions[-1] == region
            if together and sum(parts[-1]) == piece[0]:
                parts[-1] = (parts[-1][0], parts[-1][1] + piece[1])
            else:
                parts.append(piece)
                regions.append(region)
        return parts, regions

    def read(self, piece: Piece) -> bytes:
        return bytes(self.memory[piece[0] : sum(piece)])

    def join(self, send: Send) -> None:
        send.gen.sends.append(send)
        send.sock.accepted.append(send)
        send.sock.queue.append(send)
        self.idles.discard(send.sock)
        self.lingering.discard(send.sock)

    def grow(self, send: Send, size: int, weight: int, count: int) -> None:
        send.gen.bytes += weight
        send.gen.total += count
        self.count(send.gen.ctx, "sends", count)
        self.waiting_bytes += size
        self.waiting_sends += count

    def sent(self, send: Send) -> int:
        sent = send.gen.number << SENT_SHIFT | (STAGED if send.slab is not None else 0)
        enough = TURN_BYTES_STAGED
        if send.slab is None:
            enough = send.gen.ctx.batch(TURN_BYTES, TURN_BYTES_MOST)
        if self.waiting_bytes >= enough or self.waiting_sends >= TURN_SENDS:
            return sent | TURN
        return sent | KICK if self.waiting_sends % LOOK_SENDS == 1 else sent

    # --- staging

    def slabs_of(self, sock: Sock) -> list[int]:
        # Until its failure is told, a run keeps its memory.
        runs = [send for send in sock.accepted if send.slab is not None]
        return [run.slab or 0 for run in runs if not run.retired or run in self.failures]

    def stage(self, ctx: Ctx, sock: Sock, piece: Piece) -> int:
        """Writes a small send into the last run of the queue, what does not fit into a new one."""
        offset, size = piece
        run = next((send for send in reversed(sock.accepted) if not send.retired), None)
        if run and (run.slab is None or not run.owed or run.flying or run.cancelled):
            run = None
        if run and run.gen is not ctx.open:
            run = None
        first = min(size, STAGE_SLAB - run.size) if run else 0
        rest = size - first
        if rest:
            taken = {slab for other in self.sockets for slab in self.slabs_of(other)}
            free = [slab for slab in range(self.slabs) if slab not in taken]
            if rest > STAGE_SLAB or not free or len(self.slabs_of(sock)) >= STAGE_SHARE:
                return -errno.ENOSPC
            if not self.allocate(1 + (ctx.open is None)):
                return -errno.ENOMEM
        if run and first:
            self.write(run, (offset, first), 0 if rest else 1)
        if rest:
            start = (self.base + free[0] * STAGE_SLAB, 0)
            first_part = run if first else None
            run = Send(self.open_gen(ctx), sock, [start], 0, 0, b"", slab=free[0], count=0)
            run.registered, run.begun_in = True, first_part
            self.join(run)
            self.write(run, (offset + first, rest), 1)
        assert run
        return self.sent(run)

    def write(self, run: Send, piece: Piece, count: int) -> None:
        (start, size), (_, more) = run.pieces[0], piece
        run.pieces = [(start, size + more)]
        run.content += self.read(piece)
        run.weight += more
        run.count += count
        self.grow(run, more, more, count)

    # --- leaving the queue, and the generation

    def sweep(self, sock: Sock) -> None:
        """Drops the cancelled sends of a queue; cancels the requests that cover one."""
        for req in sock.in_flight:
            if any(send.cancelled for send in req.sends):
                self.cancels.add(req)
        for send in list(sock.queue):
            if not send.cancelled or send.flying:
                continue
            begun_in, undecided = send.begun_in, False
            while begun_in and begun_in.owed and not begun_in.error:
                # Its beginning is in flight, or depends on something that is.
                undecided |= begun_in.flying
                begun_in = begun_in.begun_in
            if undecided:
                continue
            if send.done or (send.begun_in and send.begun_in.done):
                self.break_sock(sock, errno.ECANCELED)
                return
            self.fail_send(send, errno.ECANCELED)

    def break_sock(self, sock: Sock, error: int, reset: bool = False) -> None:
        if not sock.error or (reset and not sock.reset):
            self.broken.add(sock)
        sock.error = sock.error or error
        sock.reset = sock.reset or reset
        if sock.reset:
            for send in sock.accepted:
                if not (send.owed or send.retired):
                    self.note_failure(send, error)  # what is held is lost with the connection
        self.cancels.update(sock.in_flight)
        # What is in flight on a stream decides how much of the next send was taken: wait for it.
        if sock.kind == DATAGRAM or not sock.in_flight:
            for send in list(sock.queue):
                self.fail_send(send, sock.error)

    def note_failure(self, send: Send, error: int) -> None:
        if not send.error and not send.settled:
            send.error = error
            self.count(send.gen.ctx, "failed", send.count)
            if not send.cancelled:
                self.failures.append(send)

    def fail_send(self, send: Send, error: int) -> None:
        self.note_failure(send, error)
        self.leave_queue(send)

    def leave_queue(self, send: Send) -> None:
        send.owed = False
        if send in send.sock.queue:
            send.sock.queue.remove(send)
        if send.flags & (REPORT | FLUSH):
            self.results.append(send)
        if send.flags & FLUSH and not send.error and not send.gen.flushed:
            self.end_gen(send.gen)
        self.check_window(send.gen.ctx)
        if send.slab is not None:
            self.settle(send)
        if send.retired:
            self.retire(send)

    def retire(self, send: Send) -> None:
        if send.slab is None:
            self.settle(send)
        if not send.sock.idle:
            return
        if self.linger and not send.sock.error:
            send.sock.idle_since = self.now
            self.lingering.add(send.sock)
        else:
            self.idles.add(send.sock)

    def settle(self, send: Send) -> None:
        ctx = send.gen.ctx
        if not send.error:
            how = "staged" if send.slab is not None else "copied" if send.copied else "zero_copied"
            self.count(ctx, how, send.count)
        if send.gen.released:
            self.count(ctx, "generations_released")
        self.check_window(ctx)

    def check_window(self, ctx: Ctx) -> None:
        used = ctx.unreleased_bytes
        if ctx.wanted and (used == 0 or used + ctx.wanted <= ctx.window):
            ctx.wanted = 0
            self.windows.add(ctx)

    def dealt_with(self, sock: Sock) -> None:
        """The shutdown or reset of a broken socket was handed out."""
        self.broken.remove(sock)
        if sock.idle:
            self.idles.add(sock)

    # --- idle sockets

    def set_linger(self, ticks: int) -> None:
        self.linger = ticks
        self.advance(0)

    def advance(self, ticks: int) -> None:
        self.now += ticks
        for sock in list(self.lingering):
            if self.now - sock.idle_since >= self.linger:
                self.lingering.remove(sock)
                self.idles.add(sock)

    def tell_idle(self, sock: Sock) -> bool:
        if sock.idle:
            self.lingering.discard(sock)
            self.idles.add(sock)
        return sock.idle
