"""The facts that the model of the native accounting keeps, and the limits it shares with the C."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field

STREAM, DATAGRAM = 0, 1
MORE, NOTIF, COPIED = 1, 2, 4
RELEASED, FAILED, RESULT, WINDOW, IDLE = 1, 2, 3, 4, 5
TURN, KICK, STAGED, SENT_SHIFT = 1, 2, 4, 3
MUTABLE, UNSTAGED, REPORT, FLUSH = 1, 2, 4, 8
AUTO, ALWAYS, NEVER = 0, 1, 2

GATHER_BYTES, GATHER_BYTES_MOST, GATHER_BUFFERS = 1 << 20, 4 << 20, 128
REGISTERED_ZERO_COPY = 16 << 10
TURN_BYTES, TURN_BYTES_MOST, TURN_BYTES_STAGED = 256 << 10, 4 << 20, 512 << 10
TURN_SENDS, LOOK_SENDS = 4096, 256
DATAGRAMS_IN_FLIGHT, DATAGRAM_PAGES = 64, 17
WINDOW_SHARE, ROLL_SENDS = 4, 4096
DENIED_REQUESTS = 64
SLOTS_SHARE = 4
STAGE_SLAB, STAGE_SHARE = 64 << 10, 16
TRAIN_BYTES, TRAIN_SEGMENTS, CUT_TRAINS, VECTOR_MOST = 65_507, 64, 256, 1024
COPIED_IN_A_ROW, COPY_REQUESTS, COPY_REQUESTS_MOST = 4, 32, 4096

RETRIED = {errno.EAGAIN, errno.EINTR, errno.ECANCELED}
FALLS_BACK = {errno.ENOMEM, errno.ENOBUFS, errno.EOPNOTSUPP}
# Of a train, and not of its datagrams.
REFUSED = {errno.EMSGSIZE, errno.EINVAL, errno.EIO}

Piece = tuple[int, int]  # offset and size in the memory that the sends are cut from
Event = tuple[int, int, int, int]


def cut(pieces: list[Piece], start: int, stop: int) -> list[Piece]:
    """The part of `pieces` from byte `start` to byte `stop`, without empty pieces."""
    out, position = [], 0
    for offset, size in pieces:
        low, high = max(start - position, 0), min(stop - position, size)
        if low < high:
            out.append((offset + low, high - low))
        position += size
    return out


@dataclass(eq=False)
class Send:
    gen: Gen
    sock: Sock
    pieces: list[Piece]
    weight: int
    flags: int
    content: bytes  # what its bytes were when it was called
    slab: int | None = None  # of a staged run
    region: int | None = None  # of registered memory, of which it is one piece
    registered: bool = False  # a part of it lies in registered memory
    begun_in: Send | None = None  # the unit before it has the beginning of its first bytes' send
    count: int = 1  # sends of the program that this is: a staged run is many, and so is a train
    segment: int = 0  # of a train: bytes of each of its datagrams but the last
    ticket: int = 0
    done: int = 0
    error: int = 0
    owed: bool = True  # the queue still has to send bytes of it
    flying: bool = False  # in a request without a result
    requests: int = 0  # that cover it and have not ended
    copied: bool = False
    force_copy: bool = False
    cancelled: bool = False

    @property
    def size(self) -> int:
        return sum(size for _, size in self.pieces)

    @property
    def retired(self) -> bool:
        return not self.owed and not self.requests

    @property
    def settled(self) -> bool:
        """It is of no concern to its generation: the caller's buffer is not read any more."""
        return self.retired or (self.slab is not None and not self.owed)


@dataclass(eq=False)
class Gen:
    ctx: Ctx
    number: int
    flushed: bool = False
    bytes: int = 0
    total: int = 0  # sends of the program that joined
    sends: list[Send] = field(default_factory=list)

    @property
    def released(self) -> bool:
        return self.flushed and all(send.settled for send in self.sends)


@dataclass(eq=False)
class Ctx:
    id: int
    next_generation: int
    window: int
    policy: int
    threshold: int
    by_hand: bool = False
    until_taken: bool = False  # the window counts what the kernel has not taken
    wanted: int = 0
    gens: list[Gen] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)

    def batch(self, least: int, most: int) -> int:
        return min(max(self.window // WINDOW_SHARE, least), most)

    @property
    def open(self) -> Gen | None:
        return self.gens[-1] if self.gens and not self.gens[-1].flushed else None

    @property
    def unreleased(self) -> list[Send]:
        return [send for gen in self.gens for send in gen.sends if not send.settled]

    @property
    def unreleased_bytes(self) -> int:
        return sum(send.weight for send in self.unreleased if send.owed or not self.until_taken)


@dataclass(eq=False)
class Sock:
    id: int
    kind: int
    can_zero_copy: bool
    error: int = 0
    reset: bool = False
    copied_in_a_row: int = 0
    copy_left: int = 0
    copy_next: int = 0
    takes_trains: bool = False
    cut_from: int = 0  # segments from this size on were refused...
    cut_left: int = 0  # ...and are cut at once for so many calls
    idle_since: int = 0  # ticks
    accepted: list[Send] = field(default_factory=list)  # in the order of the calls
    queue: list[Send] = field(default_factory=list)
    requests: list[Req] = field(default_factory=list)

    @property
    def in_flight(self) -> list[Req]:
        return [req for req in self.requests if not req.result_seen]

    @property
    def idle(self) -> bool:
        return all(send.retired for send in self.accepted)

    @property
    def ready(self) -> bool:
        most = 1 if self.kind == STREAM else DATAGRAMS_IN_FLIGHT
        return bool(self.queue) and not self.error and len(self.in_flight) < most


@dataclass(eq=False)
class Req:
    sock: Sock
    sends: list[Send]
    pieces: list[Piece]
    zero_copy: bool
    user_data: int = 0
    touched: int = 0  # so many of its sends had bytes taken by it
    result_seen: bool = False
    notif_seen: bool = False
    expects_notif: bool = False
    copied: bool = False

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.pieces)
