"""Stray completions, slots and memory that run out, wrong input."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.native.harness import MEMORY, SOCK, Queue, idle, released, send_bytes, small
from tests.native.model_state import (
    AUTO,
    DATAGRAM,
    DATAGRAMS_IN_FLIGHT,
    KICK,
    NEVER,
    STREAM,
)
from zc_anyio._native._zc import ffi, lib

# --- completions that nobody waits for, slots


def test_strays_change_nothing(q: Queue) -> None:
    q.send(10)
    q.flush()
    view = q.take()
    assert lib.zc_complete(q.core, 2**64 - 1, 0, 0) == -errno.ESTALE
    assert lib.zc_complete(q.core, view.user_data ^ 1 << 32, 10, 0) == -errno.ESTALE
    assert q.result(view, 10) == 0
    assert q.result(view, 10) == -errno.EPROTO
    assert q.notify(view) == 0
    assert q.notify(view) == -errno.ESTALE
    assert q.result(view, 10) == -errno.ESTALE
    assert (q.stats("strays"), q.stats("completions"), q.stats("bytes_sent")) == (5, 2, 10)
    q.finish()


def test_a_late_notification_matches_no_later_request(q: Queue) -> None:
    q.send(10)
    first = q.take()
    q.result(first, 10, 0)
    q.send(20)
    second = q.take()
    assert second.user_data != first.user_data
    assert second.user_data >> 32 == 0  # the counter of the slot began at its last value
    assert q.notify(first) == -errno.ESTALE
    q.result(second, 20, 0)
    q.finish()


def test_slots_run_out_and_come_back(queues: list[Queue]) -> None:
    queues.append(q := Queue(DATAGRAM, max_requests=2))
    for _ in range(3):
        q.send(10)
    views = [q.take() for _ in range(2)]
    assert q.take() is None
    q.result(views[0], 10)
    assert q.take() is None  # its notification can still come
    q.notify(views[0])
    views.append(q.take())
    for view in views[1:]:
        q.result(view, 10, 0)
    q.finish()


def test_datagrams_in_flight_are_bounded(udp: Queue) -> None:
    for _ in range(DATAGRAMS_IN_FLIGHT + 1):
        udp.send(10)
    views = []
    while view := udp.take():
        views.append(view)
    assert len(views) == DATAGRAMS_IN_FLIGHT
    udp.result(views[0], 10)
    assert udp.take() is not None


# --- wrong input, and memory that runs out


def test_sizes_that_are_refused(q: Queue, udp: Queue) -> None:
    udp = q.add_sock(DATAGRAM)
    assert q.send(0) == -errno.EINVAL
    assert q.send(2**63) == -errno.EMSGSIZE
    assert q.send(2**63 - 1, 1) == -errno.EMSGSIZE
    assert q.send(2**64 - 1, 1) == -errno.EMSGSIZE
    assert q.send(65536, sock=udp) == -errno.EMSGSIZE
    assert q.send(*[1] * 1025, sock=udp) == -errno.EMSGSIZE
    assert q.stats("sends") == 0
    assert q.flush() == -errno.ENODATA
    assert q.send(*[1] * 1024, sock=udp) >= 0
    assert q.take().buffers == 1024


def test_missing_arguments_are_refused(q: Queue) -> None:
    null = ffi.NULL
    core, ctx, sock, errors = q.core, q.ctx, q.sock, ffi.new("int32_t[1]")
    for result in (
        lib.zc_core_free(null),
        lib.zc_core_linger(null, 1),
        lib.zc_core_advance(null, 1),
        lib.zc_events(core, null, 1),
        lib.zc_ctx_free(core, null),
        lib.zc_ctx_flush(core, null, 0),
        lib.zc_ctx_cancel(core, null),
        lib.zc_ctx_reset(core, ctx, 0, 0),
        lib.zc_ctx_unreleased(null, 0),
        lib.zc_ctx_get_stats(ctx, null),
        lib.zc_ctx_copy_alone(null, 0),
        lib.zc_ctx_may_reset(null, 1),
        lib.zc_core_lockable(null, 0),
        lib.zc_sock_free(core, null),
        lib.zc_sock_watch(core, null, 1),
        lib.zc_ring_look(null, 1, 0, ffi.new("uint64_t[1]"), 1),
        lib.zc_sock_fail(core, sock, 0),
        lib.zc_sock_reset(core, sock, 0),
        lib.zc_sock_tell_idle(core, null),
        lib.zc_sock_unsent(null),
        lib.zc_sock_error(null),
        lib.zc_queue(core, null, sock, MEMORY, 1, 0),
        lib.zc_broadcast(core, ctx, [sock, null], 2, MEMORY, 1, 0, errors),
        lib.zc_broadcast(core, ctx, [null, sock], 2, MEMORY, 1, 0, errors),
        lib.zc_broadcast(core, ctx, [sock], 1, MEMORY, 0, 0, errors),
        lib.zc_next_request(core, null),
        lib.zc_next_cancel(core, null),
        lib.zc_next_broken(core, null, null),
        lib.zc_complete(null, 0, 0, 0),
    ):
        assert result == -errno.EINVAL
    for made in (
        lib.zc_core_new(0, 0),
        lib.zc_core_new(0, 2**32 - 1),
        lib.zc_ctx_new(core, 1, 0, 0, AUTO, 0),
        lib.zc_ctx_new(core, 1, 0, 1, NEVER + 1, 0),
        lib.zc_sock_new(core, 1, 1, 2, 1),
    ):
        assert made == null
    q.finish()


def test_memory_that_runs_out_leaves_no_trace(q: Queue) -> None:
    for budget in range(3):
        lib.zc_core_alloc_budget(q.core, budget)
        assert q.send(10, 10) == -errno.ENOMEM
    assert lib.zc_ctx_new(q.core, 1, 0, 1, AUTO, 0) == ffi.NULL
    assert lib.zc_sock_new(q.core, 1, 1, STREAM, 1) == ffi.NULL
    assert q.flush(even_empty=True) == -errno.ENOMEM
    assert q.stats("allocations") == 2  # the socket and the context
    assert q.stats("sends") == 0
    lib.zc_core_alloc_budget(q.core, 3)
    assert q.send(10, 10) == KICK
    assert q.take() is None  # a request needs memory, too; the send waits
    lib.zc_core_alloc_budget(q.core, -1)
    assert q.take().bytes == 20


def test_a_datagram_to_an_address(q: Queue) -> None:
    udp, address = q.add_sock(DATAGRAM), ffi.new("char[128]")

    def send_to(sock: Any, to_size: int) -> int:
        where, data = (q.core, q.ctx, sock), ([MEMORY, MEMORY], [10, 20], 2, 0)
        sent: int = lib.zc_queue_to(*where, *data, address, to_size)
        return sent

    assert send_to(q.sock, 16) == -errno.EINVAL
    assert send_to(udp, 129) == -errno.EINVAL
    before = q.stats("allocations")
    for budget in range(4):
        lib.zc_core_alloc_budget(q.core, budget)
        assert send_to(udp, 16) == -errno.ENOMEM
    assert q.stats("allocations") == before
    lib.zc_core_alloc_budget(q.core, -1)
    assert send_to(udp, 16) == KICK
    before = q.stats("allocations")
    assert send_to(udp, 128) == 0, "as large as an address can be"
    assert q.stats("allocations") == before + 3, "the send, its vector and its address"
    for view in (q.take(), q.take()):
        assert (view.bytes, view.buffers) == (30, 2)
        q.result(view, 30)
        q.notify(view)
    q.finish()


def test_a_core_in_use_can_be_freed(q: Queue) -> None:
    """As when its ring is gone; the fixture frees it and asks whether all memory was found."""
    udp, broken = q.add_sock(DATAGRAM), q.add_sock()
    q.flush(even_empty=True)
    for sock in (q.sock, udp, broken, q.sock):
        q.send(10, 10, sock=sock)
    q.result(q.take(), 10)
    views = [q.take(), q.take()]
    q.result(views[1], -errno.EPIPE)
    q.flush()
    q.send(10)
    lib.zc_ctx_cancel(q.core, q.ctx)


def test_a_core_that_holds_staged_sends_can_be_freed(queues: list[Queue]) -> None:
    q = small(queues, 4)
    send_bytes(q, b"abc")
    q.result(q.take(), 3)
    q.flush()
    assert q.events() == [released(0)]
    send_bytes(q, b"def")
    assert q.stats("held") == 1


def test_a_suspended_socket_takes_nothing(q: Queue) -> None:
    assert q.send(10) >= 0
    assert lib.zc_sock_suspend(q.core, q.sock) == -errno.EBUSY
    view = q.take()
    assert lib.zc_sock_suspend(q.core, q.sock) == -errno.EBUSY
    q.result(view, 10)
    assert lib.zc_sock_suspend(q.core, q.sock) == -errno.EBUSY
    q.notify(view)
    q.events()
    assert lib.zc_sock_resume(q.core, q.sock, 5) == -errno.EINVAL
    assert lib.zc_sock_suspend(q.core, q.sock) == 0
    assert lib.zc_sock_suspend(q.core, q.sock) == 0
    assert q.stats("sockets") == 0
    errors = ffi.new("int32_t[1]")
    assert q.send(10) == -errno.EBADF
    assert lib.zc_broadcast(q.core, q.ctx, [q.sock], 1, MEMORY, 10, 0, errors) == -errno.EPIPE
    assert errors[0] == errno.EBADF
    assert lib.zc_sock_resume(q.core, q.sock, 5) == 0
    assert q.stats("sockets") == 1
    assert q.send(10) >= 0
    q.finish()


def test_a_socket_with_an_untold_failure_is_not_suspended(q: Queue) -> None:
    assert q.send(10) >= 0
    assert lib.zc_sock_fail(q.core, q.sock, errno.ECONNRESET) == 0
    assert lib.zc_sock_suspend(q.core, q.sock) == -errno.EBUSY
    assert q.broken() == [(SOCK, 0)]
    assert lib.zc_sock_suspend(q.core, q.sock) == -errno.EBUSY
    q.events()
    assert lib.zc_sock_suspend(q.core, q.sock) == 0
    q.finish()


@pytest.mark.parametrize("reset", [False, True])
def test_a_socket_whose_end_is_owed_is_not_suspended(q: Queue, reset: bool) -> None:
    if reset:
        assert lib.zc_sock_reset(q.core, q.sock, errno.ETIMEDOUT) == 0
    else:
        assert lib.zc_sock_fail(q.core, q.sock, errno.ETIMEDOUT) == 0
    assert lib.zc_sock_tell_idle(q.core, q.sock) == 1
    assert q.events() == [idle()]
    assert lib.zc_sock_suspend(q.core, q.sock) == -errno.EBUSY
    assert lib.zc_sock_free(q.core, q.sock) == -errno.EBUSY
    assert q.broken() == [(SOCK, reset)]
    assert q.events() == [idle()], "whoever was refused is told when to try again"
    assert lib.zc_sock_suspend(q.core, q.sock) == 0
    # Of a suspended one there is no descriptor to end the connection by.
    assert lib.zc_sock_reset(q.core, q.sock, errno.ETIMEDOUT) == 0
    assert q.broken() == []
    q.finish()


def broadcast(q: Queue) -> int:
    errors = ffi.new("int32_t[1]")
    sent: int = lib.zc_broadcast(q.core, q.ctx, [q.sock], 1, MEMORY, 10, 0, errors)
    return sent


@pytest.mark.parametrize("call", [Queue.send, broadcast])
def test_only_the_thread_of_the_ring_sends(q: Queue, call: Callable[..., int]) -> None:
    args = () if call is broadcast else (10,)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(call, q, *args).result() == -errno.EPERM
    assert q.stats("sends") == 0
    assert call(q, *args) >= 0
    q.finish()


@pytest.mark.parametrize("call", [Queue.send, broadcast])
def test_a_core_that_was_disowned_takes_nothing(q: Queue, call: Callable[..., int]) -> None:
    assert lib.zc_core_disown(q.core) == 0
    assert call(q, *(() if call is broadcast else (10,))) == -errno.EPERM
    assert q.stats("sends") == 0
    q.finish()
