"""Sends that need no queue: what goes at once, what is queued behind it, and what is counted."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket

import pytest

from tests.native.direct import THRESHOLD, Direct
from tests.native.model_state import (
    ALWAYS,
    AUTO,
    COPIED,
    COPIED_IN_A_ROW,
    COPY_REQUESTS,
    DENIED_REQUESTS,
    FLUSH,
    NEVER,
    REPORT,
    RESULT,
    SENT_SHIFT,
    STAGED,
)
from tests.support.peers import parked_pair, receive_to_end, tcp_pair
from tests.support.waiting import LIMIT
from zc_anyio._native._zc import ffi, lib
from zc_anyio.testing import reset

# Of so many bytes it is always known whether they go zero-copy.
LARGE = 40 * THRESHOLD

Pair = tuple[socket.socket, socket.socket]

# --- what goes at once


def test_copied_sends_leave_at_once(ring: Direct, pair: Pair) -> None:
    assert ring.send(b"one") == STAGED
    assert ring.send(b" two") == STAGED
    assert pair[1].recv(100) == b"one two"
    counted = ("sends", "copied", "bytes_sent", "staged", "zero_copied")
    assert ring.stats(*counted) == ring.ctx_stats(*counted) == (2, 2, 7, 0, 0)
    assert ring.stats("requests", "queued", "allocations") == (0, 0, 2)
    assert lib.zc_sock_unsent(ring.sock) == 0


def test_what_would_be_zero_copied_is_queued(ring: Direct, pair: Pair) -> None:
    assert ring.send(bytes(LARGE)) & STAGED == 0
    assert ring.stats("queued") == (1,)
    assert lib.zc_sock_unsent(ring.sock) == 1
    assert ring.read(pair[1], LARGE) == bytes(LARGE)


@pytest.mark.parametrize("flag", [REPORT, FLUSH])
def test_a_send_whose_result_is_asked_for_is_queued(ring: Direct, pair: Pair, flag: int) -> None:
    sent = ring.send(b"told", flags=flag)
    assert sent & STAGED == 0
    ticket = lib.zc_ctx_ticket(ring.ctx)
    assert ring.read(pair[1], 4) == b"told"
    assert (RESULT, 1, ticket, 0) in ring.events


def test_it_waits_behind_what_is_queued(ring: Direct, pair: Pair) -> None:
    ring.queue(b"first, ")
    assert ring.send(b"second") & STAGED == 0
    assert ring.read(pair[1], 13) == b"first, second"
    assert ring.send(b"third") == STAGED


def test_a_datagram_waits_behind_one_that_is_in_flight(made: list[Direct]) -> None:
    client, peer = socket.socketpair(type=socket.SOCK_DGRAM)
    with client, peer:
        made.append(ring := Direct(client, policy=NEVER))
        sent: list[bytes] = []
        while True:
            sent.append(b"%d" % len(sent))
            if not ring.send(sent[-1]) & STAGED:
                break
        ring.turn()
        assert ring.stats("queued", "in_flight") == (0, 1)
        assert lib.zc_sock_unsent(ring.sock) == 1
        # The kernel sends it as soon as there is room, and the ring does not know that yet.
        received = [peer.recv(100)]
        sent.append(b"behind")
        assert ring.send(sent[-1]) & STAGED == 0
        ring.turn()
        peer.settimeout(LIMIT)
        while len(received) < len(sent):
            ring.turn()
            received.append(peer.recv(100))
        # In whatever order: these are datagrams.
        assert sorted(received) == sorted(sent)


def test_the_window_holds_for_it_as_well(made: list[Direct], pair: Pair) -> None:
    made.append(ring := Direct(pair[0], window=100))
    with tcp_pair() as (client, _):
        ring.queue(bytes(60), sock=ring.add(client))
        assert ring.send(bytes(50)) == -errno.EAGAIN
        assert ring.send(bytes(40)) == STAGED
        assert pair[1].recv(100) == bytes(40)
        ring.turn()


# --- what the socket does not take


def test_bytes_that_the_socket_does_not_take_are_queued(made: list[Direct]) -> None:
    with parked_pair() as (client, peer):
        made.append(ring := Direct(client, policy=NEVER))
        data = os.urandom(8 << 20)
        sent = ring.send(data)
        assert (sent & STAGED, sent >> SENT_SHIFT) == (0, 0)
        taken, queued = ring.stats("bytes_sent", "queued")
        assert 0 < taken < len(data)
        assert queued == 1
        assert ring.send(b"behind") & STAGED == 0
        assert ring.read(peer, len(data) + 6) == data + b"behind"
        assert ring.ctx_stats("bytes_sent") == ring.stats("bytes_sent") == (len(data) + 6,)
        assert ring.stats("sends", "copied") == (2, 2)


def test_taking_back_what_was_not_taken_breaks_the_stream(made: list[Direct]) -> None:
    with parked_pair() as (client, peer):
        made.append(ring := Direct(client, policy=NEVER))
        ring.send(bytes(8 << 20))
        assert ring.stats("queued") == (1,)
        assert lib.zc_ctx_cancel(ring.core, ring.ctx) == 0
        assert lib.zc_sock_error(ring.sock) == errno.ECANCELED
        assert ring.send(b"behind the hole") == -errno.EPIPE
        (taken,) = ring.stats("bytes_sent")
        ring.turn()
        assert receive_to_end(peer) == bytes(taken)


def test_nothing_waits_for_a_blocking_socket(made: list[Direct]) -> None:
    with parked_pair() as (client, peer):
        client.setblocking(True)
        made.append(ring := Direct(client, policy=NEVER))
        sent = ring.fill()
        assert ring.read(peer, len(sent)) == sent


def test_running_out_of_memory_within_a_send_breaks_the_stream(made: list[Direct]) -> None:
    with parked_pair() as (client, _):
        made.append(ring := Direct(client, policy=NEVER))
        data = bytes(8 << 20)
        lib.zc_core_alloc_budget(ring.core, 0)
        assert ring.send(data) == -errno.ENOMEM
        lib.zc_core_alloc_budget(ring.core, -1)
        assert lib.zc_sock_error(ring.sock) == errno.ENOMEM
        assert ring.send(b"after the hole") == -errno.EPIPE


def test_running_out_of_memory_before_anything_left_breaks_nothing(made: list[Direct]) -> None:
    with parked_pair() as (client, peer):
        made.append(ring := Direct(client, policy=NEVER))
        sent = ring.fill()
        lib.zc_core_alloc_budget(ring.core, 0)
        assert ring.send(b"refused") == -errno.ENOMEM
        lib.zc_core_alloc_budget(ring.core, -1)
        assert lib.zc_sock_error(ring.sock) == 0
        assert ring.read(peer, len(sent)) == sent


# --- failures


def test_a_failure_breaks_a_stream(
    ring: Direct, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: signals.append(number))
    try:
        reset(pair[1])
        pair[1].close()
        assert ring.send(b"lost") == -errno.ECONNRESET
        assert lib.zc_sock_error(ring.sock) == errno.ECONNRESET
        # The kernel says EPIPE now, and would send a signal.
        other = ring.add(pair[0])
        assert ring.send(b"lost", sock=other) == -errno.EPIPE
        assert lib.zc_sock_error(other) == errno.EPIPE
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert signals == []
    assert ring.stats("sends", "bytes_sent") == (0, 0)


def test_nothing_is_sent_on_a_stream_that_is_broken(ring: Direct, pair: Pair) -> None:
    lib.zc_sock_fail(ring.core, ring.sock, errno.ETIMEDOUT)
    assert ring.send(b"behind a hole") == -errno.EPIPE
    ring.turn()
    assert pair[1].recv(100) == b""


def test_a_suspended_socket_has_to_be_resumed_first(ring: Direct) -> None:
    assert lib.zc_ring_suspend(ring.ring, ring.sock) == 0
    assert ring.send(b"nowhere") == -errno.EBADF
    assert lib.zc_sock_error(ring.sock) == 0


def test_a_failure_does_not_break_a_datagram_socket(made: list[Direct]) -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as client,
        socket.socket(type=socket.SOCK_DGRAM) as peer,
    ):
        with socket.socket(type=socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            client.connect(gone.getsockname())
        made.append(ring := Direct(client))
        assert ring.send(b"to nobody") == STAGED
        assert ring.send(b"to nobody") == -errno.ECONNREFUSED
        assert lib.zc_sock_error(ring.sock) == 0
        peer.bind(("127.0.0.1", 0))
        client.connect(peer.getsockname())
        assert ring.send(b"to the peer") == STAGED
        assert peer.recv(100) == b"to the peer"


@pytest.mark.parametrize("policy", [AUTO, ALWAYS])
def test_an_address(made: list[Direct], policy: int) -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as client,
        socket.socket(type=socket.SOCK_DGRAM) as peer,
    ):
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(LIMIT)
        memory = ffi.new("char[128]")
        size = lib.zc_address(b"127.0.0.1", peer.getsockname()[1], 0, 0, memory)
        made.append(ring := Direct(client, policy=policy))
        sent = ring.send(b"to an address", to=ffi.buffer(memory, size)[:])
        # With zero copy it is queued.
        assert bool(sent & STAGED) is (policy == AUTO)
        ring.turn()
        assert peer.recv(100) == b"to an address"


def test_a_stream_has_no_address(ring: Direct) -> None:
    assert ring.send(b"x", to=bytes(16)) == -errno.EINVAL


# --- what was learned


def test_sends_that_go_at_once_bring_the_next_probe_nearer(ring: Direct, pair: Pair) -> None:
    for _ in range(COPIED_IN_A_ROW):
        assert ring.send(bytes(LARGE)) & STAGED == 0
        ring.answer(LARGE, COPIED)
    for left in range(COPY_REQUESTS, 0, -1):
        assert ring.copy_left == left
        assert ring.send(bytes(LARGE)) == STAGED
        ring.read(pair[1], LARGE)
    assert ring.send(bytes(LARGE)) & STAGED == 0


def fill(client: socket.socket) -> None:
    """Send until there is no room, and see to it that none comes with what is under way."""
    with pytest.raises(BlockingIOError):
        while True:
            client.send(bytes(LARGE))
    # What waits is more than that by far.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def test_a_refused_send_is_counted_when_it_is_sent(made: list[Direct]) -> None:
    with parked_pair() as (client, _):
        made.append(ring := Direct(client))
        for _ in range(COPIED_IN_A_ROW):
            ring.send(bytes(LARGE))
            ring.answer(LARGE, COPIED)
        fill(client)
        assert ring.send(bytes(LARGE)) & STAGED == 0
        assert ring.copy_left == COPY_REQUESTS
        ring.answer(LARGE)
        assert ring.copy_left == COPY_REQUESTS - 1


def test_sends_that_go_at_once_count_after_memory_was_denied(ring: Direct, pair: Pair) -> None:
    assert ring.send(bytes(LARGE)) & STAGED == 0
    ring.answer(-errno.ENOMEM, 0)
    # The same bytes once more, by copying.
    ring.answer(LARGE)
    for _ in range(DENIED_REQUESTS - 1):
        assert ring.send(bytes(LARGE)) == STAGED
        ring.read(pair[1], LARGE)
    assert ring.send(bytes(LARGE)) & STAGED == 0


# --- the share of a turn


def test_a_share_that_is_used_up_asks_for_no_turn_if_nothing_is_left(made: list[Direct]) -> None:
    with parked_pair() as (client, _):
        made.append(ring := Direct(client, policy=ALWAYS))
        with parked_pair() as (other, _):
            second = ring.add(other)
            # All that a turn submits, in one request that waits for its peer.
            assert ring.queue(bytes(4 << 20)) >= 0
            ring.turn()
            assert ring.stats("requests", "in_flight") == (1, 1)
            assert lib.ZC_EV_MORE not in [event[0] for event in ring.events]
            for sock in (ring.add(client), second):
                assert ring.queue(bytes(4 << 20), sock) >= 0
            ring.turn()
            assert lib.ZC_EV_MORE in [event[0] for event in ring.events]


# --- the end of a connection


def test_a_break_in_the_last_round_of_a_turn_asks_for_another(
    made: list[Direct], pair: Pair
) -> None:
    made.append(ring := Direct(pair[0], policy=ALWAYS))
    copies = lib.zc_ctx_new(ring.core, 2, 0, 1 << 40, NEVER, THRESHOLD)
    # One that is zero-copied has its result in the next round, and then another follows.
    for number in range(7):
        assert ring.queue(b"zero-copied ") >= 0
        data = ffi.cast("char *", 8) if number == 6 else ffi.new("char[]", b"copied ")
        ring.kept.append(data)
        assert lib.zc_queue(ring.core, copies, ring.sock, data, 7, 0) >= 0
    ring.turn()
    assert ring.stats("failed") == (1,)
    assert lib.zc_sock_error(ring.sock) == errno.EFAULT
    sent = b"zero-copied copied " * 6 + b"zero-copied "
    assert pair[1].recv(1000) == sent
    assert not select.select([pair[1]], [], [], 0)[0], "it is shut down in the next turn"
    assert lib.ZC_EV_AGAIN in [event[0] for event in ring.events]
    ring.turn()
    assert pair[1].recv(1000) == b""


@pytest.mark.parametrize("by", ["a turn", "the end of the ring"])
def test_an_end_that_is_owed_is_not_forgotten(made: list[Direct], pair: Pair, by: str) -> None:
    with pair[0].dup() as twin:
        made.append(ring := Direct(twin))
        assert lib.zc_sock_fail(ring.core, ring.sock, errno.ECONNABORTED) == 0
        assert lib.zc_ring_suspend(ring.ring, ring.sock) == -errno.EBUSY
        assert lib.zc_ring_detach(ring.ring, ring.sock) == -errno.EBUSY
        if by == "a turn":
            ring.turn()
            assert lib.zc_ring_suspend(ring.ring, ring.sock) >= 0
        else:
            made.remove(ring)
            ring.close()
        # The program's own descriptors of it are still open.
        assert pair[1].recv(1000) == b""
