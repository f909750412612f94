"""What the native accounting has to do, said in plain Python.

The model keeps every fact once (a send is owed by its queue, covered by requests, or neither) and
derives the rest by looking, where the C keeps lists and counters.  It predicts each answer of the
C, the content of each request, and which events may be told and which may not be told yet.
"""

from __future__ import annotations

import errno

from tests.native.model_state import (
    ALWAYS,
    COPIED,
    COPIED_IN_A_ROW,
    COPY_REQUESTS,
    COPY_REQUESTS_MOST,
    DATAGRAM,
    DENIED_REQUESTS,
    FALLS_BACK,
    GATHER_BUFFERS,
    GATHER_BYTES,
    GATHER_BYTES_MOST,
    MORE,
    NEVER,
    NOTIF,
    REGISTERED_ZERO_COPY,
    RETRIED,
    SLOTS_SHARE,
    STREAM,
    Req,
    Send,
    Sock,
    cut,
)
from tests.native.model_trains import Trains


def touch(before: Send, send: Send) -> bool:
    """Whether both are one piece of one region, or runs, and neighbours."""
    runs = before.slab is not None and send.slab is not None
    same = before.region is not None and before.region == send.region
    return (runs or same) and sum(before.pieces[0]) == send.pieces[0][0]


class Model(Trains):
    # --- requests

    def wants_zero_copy(self, send: Send) -> bool:
        ctx, sock = send.gen.ctx, send.sock
        if not sock.can_zero_copy or send.force_copy or self.denied or ctx.policy == NEVER:
            return False
        share = self.max_requests // SLOTS_SHARE
        if len(sock.requests) >= max(share, 1) or len(self.requests) >= self.max_requests - share:
            return False
        least = ctx.threshold
        if send.region is not None or send.slab is not None:
            least = min(least, REGISTERED_ZERO_COPY)
        return ctx.policy == ALWAYS or (send.size >= least and not sock.copy_left)

    def may_build(self) -> bool:
        return len(self.requests) < self.max_requests and any(s.ready for s in self.sockets)

    def nothing_built(self) -> None:
        if not any(sock.ready for sock in self.sockets):
            self.waiting_bytes = self.waiting_sends = 0

    def build(self, sock: Sock) -> Req:
        """The one request that the C may make of this socket now."""
        assert sock.ready, f"socket {sock.id} may have nothing submitted now"
        req = Req(sock, [], [], self.wants_zero_copy(sock.queue[0]))
        most = sock.queue[0].gen.ctx.batch(GATHER_BYTES, GATHER_BYTES_MOST)
        for send in sock.queue:
            full = req.bytes >= most or len(req.sends) == GATHER_BUFFERS or send.size > most
            other = self.wants_zero_copy(send) != req.zero_copy
            alone = sock.kind == DATAGRAM or not self.may_follow(req, send)
            if req.sends and (alone or full or other or not self.gather(req, send, send.size)):
                break
            if not req.sends:
                # Of one large send a request takes a part.
                self.gather(req, send, most if sock.kind == STREAM else send.size)
            req.sends.append(send)
            if sum(size for _, size in req.pieces) < sum(s.size - s.done for s in req.sends):
                break  # only a part of it fitted
        for send in req.sends:
            send.flying = True
            send.requests += 1
            if sock.kind == DATAGRAM:
                sock.queue.remove(send)
        self.denied -= self.denied > 0
        sock.copy_left -= sock.copy_left > 0 and not req.zero_copy
        self.totals["requests"] += 1
        sock.requests.append(req)
        self.requests.append(req)
        return req

    def may_follow(self, req: Req, send: Send) -> bool:
        """Whether a send may share a request with the last one in it."""
        if not req.sends or not req.zero_copy:
            return True
        before = req.sends[-1]
        return not (before.registered or send.registered) or touch(before, send)

    def gather(self, req: Req, send: Send, most: int) -> bool:
        """Adds what is left of a send and fits, up to `most` bytes; false if nothing of it fits."""
        stop = min(send.size, send.done + most)
        pieces = cut(send.pieces, send.done, stop) if send.size else send.pieces
        taken = False
        for piece in pieces:
            if req.sends and touch(req.sends[-1], send):
                # Runs whose slabs touch, and neighbours of a pool, go out as one piece.
                req.pieces[-1] = (req.pieces[-1][0], req.pieces[-1][1] + piece[1])
            elif len(req.pieces) < GATHER_BUFFERS or send.sock.kind == DATAGRAM:
                req.pieces.append(piece)
            else:
                break
            taken = True
        return taken

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
            if req.touched:
                self.learn(req.sock, req.copied)
                if not req.sends[0].registered:
                    self.denied = 0
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
            if send.retired:
                self.retire(send)

    def stream_result(self, req: Req, result: int) -> None:
        sock, taken = req.sock, min(max(result, 0), req.bytes)
        for send in req.sends:
            part = min(taken, send.size - send.done)
            taken -= part
            send.done += part
            self.count(send.gen.ctx, "bytes_sent", part)
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
        elif error in RETRIED or self.falls_back(req, error) or self.is_cut(send, error):
            self.put_back(send)
        else:
            self.fail_send(send, error)

    def falls_back(self, req: Req, error: int) -> bool:
        if not req.zero_copy or error not in FALLS_BACK:
            return False
        if error == errno.EOPNOTSUPP:
            req.sock.can_zero_copy = False
        else:
            self.denied = DENIED_REQUESTS
            self.totals["refused"] += 1
        for send in req.sends:
            send.force_copy = True
        return True

    def learn(self, sock: Sock, copied: bool) -> None:
        """A socket that copies every time is sent to by copying for a while, then for longer."""
        if not copied:
            sock.copied_in_a_row = sock.copy_next = 0
        elif not sock.copy_left:
            sock.copied_in_a_row += 1
            if sock.copied_in_a_row >= COPIED_IN_A_ROW:
                sock.copied_in_a_row = COPIED_IN_A_ROW - 1
                sock.copy_next = min(sock.copy_next * 2 or COPY_REQUESTS, COPY_REQUESTS_MOST)
                sock.copy_left = sock.copy_next
