"""The model's part about trains: datagrams that leave as one send, and are cut if it is refused."""

from __future__ import annotations

import errno

from tests.native.model_queues import Queues
from tests.native.model_state import (
    CUT_TRAINS,
    DATAGRAM,
    FLUSH,
    KICK,
    REFUSED,
    REPORT,
    TRAIN_BYTES,
    TRAIN_SEGMENTS,
    VECTOR_MOST,
    Ctx,
    Piece,
    Send,
    Sock,
    cut,
)


class Trains(Queues):
    def train_bytes(self, sock: Sock, segment: int) -> int:
        """How many bytes leave at once in datagrams of a size."""
        if not sock.takes_trains or segment > TRAIN_BYTES // 2:
            return segment
        if sock.cut_from and segment >= sock.cut_from:
            if sock.cut_left:
                sock.cut_left -= 1
                return segment
            sock.cut_from = 0
        return segment * min(TRAIN_BYTES // segment, TRAIN_SEGMENTS)

    def refused_at_once(self, sock: Sock, flags: int) -> int:
        if sock.kind != DATAGRAM or flags & (REPORT | FLUSH):
            return -errno.EINVAL
        return -errno.EPIPE if sock.error else 0

    def queue_train(
        self, ctx: Ctx, sock: Sock, pieces: list[Piece], segment: int, flags: int
    ) -> int:
        total = sum(size for _, size in pieces)
        sent = self.enqueue(ctx, sock, pieces, total, flags)
        if sent < 0:
            return sent
        send = sock.accepted[-1]
        if total > segment:
            send.segment = segment
            more = -(-total // segment) - 1
            send.count += more
            self.grow(send, 0, 0, more)
        return sent | KICK

    def send_segments(
        self,
        ctx: Ctx,
        sock: Sock,
        pieces: list[Piece],
        part: range,
        segment: int,
        flags: int,
    ) -> int:
        if error := self.refused_at_once(sock, flags):
            return error
        if not segment:
            return -errno.EINVAL
        if segment > 0xFFFF or len(pieces) > VECTOR_MOST:
            return -errno.EMSGSIZE
        if not part or part.stop > sum(size for _, size in pieces):
            return -errno.EINVAL
        if self.window_full(ctx, len(part)):
            return -errno.EAGAIN
        most, before, sent = self.train_bytes(sock, segment), len(sock.accepted), 0
        for start in part[::most]:
            train = cut(pieces, start, min(start + most, part.stop))
            one = self.queue_train(ctx, sock, train, segment, flags)
            if one < 0:
                for send in sock.accepted[before:]:
                    send.cancelled = True
                self.sweep(sock)
                return one
            sent |= one
        self.roll(ctx)
        return sent

    def queue_many(self, ctx: Ctx, sock: Sock, pieces: list[Piece], flags: int) -> tuple[int, int]:
        """The answer, and how many datagrams were taken."""
        if error := self.refused_at_once(sock, flags):
            return error, 0
        sent = taken = 0
        while taken < len(pieces):
            size = pieces[taken][1]
            most = self.train_bytes(sock, size) if size else 0
            used, total = 1, size
            for _, more in pieces[taken + 1 :]:
                if total + size > most or total < used * size or not 0 < more <= size:
                    break
                used, total = used + 1, total + more
            if size > 0xFFFF:
                one = -errno.EMSGSIZE
            elif self.window_full(ctx, total):
                one = -errno.EAGAIN
            else:
                one = self.queue_train(ctx, sock, pieces[taken : taken + used], size or 1, flags)
            if one < 0:
                if not taken:
                    return one, 0
                break
            sent, taken = sent | one, taken + used
        self.roll(ctx)
        return sent, taken

    def put_back(self, send: Send) -> None:
        """Waits again where it stood."""
        place = send.sock.accepted.index
        queue = send.sock.queue
        later = (n for n, other in enumerate(queue) if place(other) > place(send))
        queue.insert(next(later, len(queue)), send)

    def is_cut(self, train: Send, error: int) -> bool:
        """A train that is refused is cut into its datagrams, if there is memory for them."""
        sock, segment, size = train.sock, train.segment, train.size
        if not segment or error not in REFUSED:
            return False
        bounds = [(start, min(start + segment, size)) for start in range(0, size, segment)]
        parts = [cut(train.pieces, start, stop) for start, stop in bounds]
        if not self.allocate(sum(1 + (len(part) > 1) for part in parts[1:])):
            return False
        if not sock.cut_from or segment < sock.cut_from:
            sock.cut_from = segment
        sock.cut_left = CUT_TRAINS
        self.waiting_bytes += size
        self.waiting_sends += len(parts)
        pieces = [
            Send(
                train.gen,
                sock,
                part,
                stop - start,
                train.flags,
                train.content[start:stop],
                region=train.region,
                registered=train.registered,
                force_copy=train.force_copy,
                ticket=train.ticket,
            )
            for part, (start, stop) in zip(parts, bounds, strict=True)
        ]
        train.pieces, train.content = parts[0], train.content[:segment]
        train.weight, train.count, train.segment = segment, 1, 0
        at = sock.accepted.index(train) + 1
        sock.accepted[at:at] = pieces[1:]
        train.gen.sends += pieces[1:]
        for piece in pieces[1:]:
            self.put_back(piece)
        return True
