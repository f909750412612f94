"""A native ring with its contexts, sockets and receivers: one method for each native function."""

from __future__ import annotations

import errno
import sys
from typing import Any

from .._base.errors import DriverUnavailable, os_error
from .lib import POLICIES, SocketInfo, check, ffi, lib

__all__ = ["NativeRing"]

EVENTS_A_TURN = 512
# Ended sockets that one look can report.
ENDED_MOST = 2048


class NativeRing:
    """A native ring, its contexts and its sockets, by handles that are opaque outside.

    :param driver: ``"io_uring"``, ``"msg_zerocopy"`` or ``"copy"``.
    :param entries: size of the submission queue; the completion queue is twice as large.
    :param event_fd: let the kernel signal an eventfd (``DEFER_TASKRUN``) instead of polling the
        ring's descriptor (``COOP_TASKRUN``).
    :raises DriverUnavailable: the kernel refuses; the message names the step and the reason.
    """

    def __init__(self, *, driver: str, entries: int, event_fd: bool = False) -> None:
        if lib is None:
            raise DriverUnavailable(f"zc_anyio sends on Linux only, and this is {sys.platform}")
        out = ffi.new("zc_ring **")
        info = ffi.new("struct zc_ring_info *")
        wake = lib.ZC_WAKE_EVENTFD if event_fd else lib.ZC_WAKE_RING_FD
        number = getattr(lib, f"ZC_DRIVER_{driver.upper()}")
        result = lib.zc_ring_open(number, entries, wake, out, info)
        if result == -errno.EINVAL and not ffi.string(info.failed_step):
            raise ValueError(f"entries must be between 1 and 32768, not {entries}")
        if result < 0:
            step = ffi.string(info.failed_step).decode()
            raise DriverUnavailable(_why(step, -result)) from os_error(-result, step)
        self.driver: str = driver
        self.staging_registered: bool = False
        self.ring: Any = out[0]
        self.core: Any = lib.zc_ring_core(self.ring)
        self.wake_fd: int = info.wake_fd
        self.setup_flags: int = info.setup_flags
        self.entries: int = info.sq_entries
        self.reports_usage: bool = bool(info.report_usage)
        self.sends_trains: bool = bool(info.trains)
        self._events: Any = ffi.new("int64_t[]", EVENTS_A_TURN * lib.ZC_EVENT_FIELDS)
        self._event_view = memoryview(ffi.buffer(self._events)).cast("B").cast("q")
        self._stats: Any = ffi.new("struct zc_stats *")
        self._ticks = 0
        self._ended: Any = ffi.new("uint64_t[]", ENDED_MOST)

    def turn(self) -> list[int]:
        """Reap and submit as much as one turn may; return four integers for each event.

        The native part keeps events that did not fit for the next call; the last event says so.
        """
        count = check(lib.zc_ring_turn(self.ring, self._events, EVENTS_A_TURN), "io_uring_enter")
        return self._event_view[: count * 4].tolist()

    def statistics(self) -> Any:
        """Return ``struct zc_stats``, overwritten by the next call."""
        lib.zc_core_stats(self.core, self._stats)
        return self._stats

    @property
    def submits(self) -> int:
        """How often the kernel was entered to submit."""
        result: int = lib.zc_ring_submits(self.ring)
        return result

    def stage(self, size: int, *, registered: bool) -> bool:
        """Give the ring staging memory; return whether it is registered with the kernel."""
        result = check(lib.zc_ring_stage(self.ring, size, registered), "staging memory")
        self.staging_registered = bool(result)
        return self.staging_registered

    def lockable(self, size: int) -> None:
        """Say how many bytes may be pinned at a time."""
        check(lib.zc_core_lockable(self.core, size))

    def register(self, memory: Any, size: int) -> None:
        """Register memory with the kernel, so that it is not pinned anew at each send."""
        check(lib.zc_ring_register(self.ring, memory, size), "registering a buffer")

    def unregister(self, memory: Any) -> None:
        """Unregister memory; what the kernel still reads stays pinned."""
        check(lib.zc_ring_unregister(self.ring, memory))

    def ticket(self, handle: Any) -> int:
        """Return the number that the result event of the send queued last will carry."""
        result: int = lib.zc_ctx_ticket(handle)
        return result

    def new_context(self, ident: int, window: int, policy: str, threshold: int) -> Any:
        """Return the handle of a new context."""
        number = POLICIES[policy]
        handle = lib.zc_ctx_new(self.core, ident, 0, window, number, threshold)
        if handle == ffi.NULL:
            raise MemoryError
        return handle

    @property
    def no_handle(self) -> Any:
        """A handle that the native part refuses."""
        return ffi.NULL

    def may_reset(self, handle: Any, *, yes: bool) -> None:
        """Say whether even buffers that cannot change may have to be released by a reset."""
        check(lib.zc_ctx_may_reset(handle, yes))

    def by_hand(self, handle: Any) -> None:
        """Have the generations of a context end only when they are flushed."""
        check(lib.zc_ctx_by_hand(handle))

    def until_taken(self, handle: Any) -> None:
        """Have the window of a context count only bytes that the kernel has not taken."""
        check(lib.zc_ctx_until_taken(handle))

    def copy_alone(self, handle: Any, below: int) -> None:
        """Copy a send below a size that can leave at once, whatever the threshold is."""
        check(lib.zc_ctx_copy_alone(handle, below))

    def count_direct(self, handle: Any, size: int) -> None:
        """Count in a context a send that was completed before the context existed."""
        check(lib.zc_ctx_count_direct(handle, size, 1))

    def linger(self, ticks: int) -> None:
        """Keep idle sockets attached for so many ticks; with 0, report all that are idle."""
        check(lib.zc_core_linger(self.core, ticks))

    def tick(self) -> None:
        """Count a tick; the next turn reports the sockets that have been idle for long."""
        self._ticks += 1
        check(lib.zc_core_advance(self.core, self._ticks))

    def look(self, closing_seconds: float, *, keep: bool) -> list[int]:
        """Look for sockets that the program has closed; return those whose connections have ended.

        A connection ends after what is queued has gone out.

        :param closing_seconds: a peer that takes nothing for so long loses its connection.
        :param keep: keep all duplicates, so that everything can be reset.
        """
        count = check(
            lib.zc_ring_look(self.ring, int(closing_seconds * 1000), keep, self._ended, ENDED_MOST)
        )
        ended: list[int] = ffi.unpack(self._ended, count)
        return ended

    def watch(self, handle: Any, fd: int) -> None:
        """From now on check whether the program still has a socket as ``fd``.

        -1 stands for a socket whose owner says when it is closed.
        """
        check(lib.zc_sock_watch(self.core, handle, fd))

    def encrypted_by_kernel(self, handle: Any) -> None:
        """Say that the kernel encrypts what is sent on a socket; then it is never zero-copied."""
        check(lib.zc_sock_encrypted(handle))

    def orphan(self) -> None:
        """Do not use the ring any more: a forked child does not have its memory."""
        lib.zc_core_disown(self.core)
        self.ring = self.core = ffi.NULL

    def generations(self, handle: Any) -> int:
        """Return how many generations a context has begun."""
        result: int = lib.zc_ctx_generations(handle)
        return result

    def free_context(self, handle: Any) -> None:
        """Free a context whose generations have all been released and reported."""
        check(lib.zc_ctx_free(self.core, handle))

    def flush(self, handle: Any, *, even_empty: bool) -> int | None:
        """End the open generation and return its number; ``None`` if there was none to end."""
        result: int = lib.zc_ctx_flush(self.core, handle, even_empty)
        return None if result == -errno.ENODATA else check(result)

    def cancel(self, handle: Any) -> None:
        """Take back those parts of a context's sends that the kernel has not taken."""
        check(lib.zc_ctx_cancel(self.core, handle))

    def reset(self, handle: Any, error: int, *, only_mutable: bool = False) -> None:
        """Reset every connection that still holds a send of a context."""
        check(lib.zc_ctx_reset(self.core, handle, error, only_mutable))

    def reset_all(self, error: int) -> None:
        """Reset every connection on which a send of this ring is under way."""
        check(lib.zc_core_reset(self.core, error))

    def unreleased(self, handle: Any, *, only_mutable: bool = False) -> int:
        """Return how many sends of a context are not settled."""
        return check(lib.zc_ctx_unreleased(handle, only_mutable))

    def context_statistics(self, handle: Any) -> Any:
        """Return ``struct zc_ctx_stats`` of a context."""
        out = ffi.new("struct zc_ctx_stats *")
        check(lib.zc_ctx_get_stats(handle, out))
        return out

    def attach(self, fd: int, ident: int, info: SocketInfo, learned: Any) -> Any:
        """Duplicate a descriptor into the ring and return the handle of its queue.

        :param learned: what :meth:`learned` returned when the socket was detached, or ``None``.
        """
        handle = lib.zc_ring_attach(self.ring, fd, ident, info, learned or ffi.NULL)
        if handle == ffi.NULL:
            raise os_error(ffi.errno)
        return handle

    def learned(self, handle: Any) -> Any:
        """Return what is worth knowing when the socket is attached again."""
        out = ffi.new("struct zc_learned *")
        lib.zc_sock_learned(handle, out)
        return out

    def suspend(self, handle: Any) -> bool | None:
        """Close the duplicate of a socket; return ``None``, with nothing done, if it is not idle.

        Otherwise returns whether the program still has the socket as the known descriptor.
        """
        result: int = lib.zc_ring_suspend(self.ring, handle)
        return None if result == -errno.EBUSY else check(result) > 0

    def resume(self, handle: Any, fd: int) -> int:
        """Duplicate a descriptor of a suspended socket; return 0 or an errno.

        ``ESTALE``: the descriptor is another socket by now; ``ENOTCONN``: the stream has lost its
        connection.
        """
        result: int = lib.zc_ring_resume(self.ring, handle, fd)
        return -result

    def detach(self, handle: Any) -> bool:
        """Forget a socket; return ``False``, with nothing done, if it is not idle."""
        result: int = lib.zc_ring_detach(self.ring, handle)
        return result != -errno.EBUSY and check(result) == 0

    def tell_idle(self, handle: Any) -> bool:
        """Report a socket as idle once more, if it is; return whether it is."""
        return check(lib.zc_sock_tell_idle(self.core, handle)) > 0

    def fail_socket(self, handle: Any, error: int) -> None:
        """Break a socket: what is queued fails with an errno, and the connection is shut down."""
        check(lib.zc_sock_fail(self.core, handle, error))

    def reset_socket(self, handle: Any, error: int) -> None:
        """Reset the connection of a stream; its queued and held sends fail."""
        check(lib.zc_sock_reset(self.core, handle, error))

    def has_unsent(self, handle: Any) -> bool:
        """Whether a socket has bytes that the kernel has not taken."""
        return check(lib.zc_sock_unsent(handle)) > 0

    def socket_error(self, handle: Any) -> int:
        """Return the errno that broke a socket, or 0."""
        result: int = lib.zc_sock_error(handle)
        return result

    def new_receiver(self, fd: int, ident: int) -> Any:
        """Return the handle of a receiver of a socket; READY events name it by ``ident``."""
        out = ffi.new("zc_rx **")
        check(lib.zc_rx_new(self.ring, fd, ident, out))
        return out[0]

    def free_receiver(self, handle: Any) -> None:
        """Free a receiver; afterwards the descriptor may be closed."""
        check(lib.zc_rx_free(self.ring, handle))

    def arm(self, handle: Any, what: int) -> None:
        """Arm an operation of a receiver in the next turn."""
        check(lib.zc_rx_arm(self.ring, handle, what))

    def stop_receiving(self) -> int:
        """Cancel the operations of all receivers; return how many are still armed."""
        return check(lib.zc_ring_stop_receiving(self.ring))

    def close(self) -> bool:
        """Close the ring; return whether every send had been retired."""
        result: int = lib.zc_ring_close(self.ring)
        self.ring = self.core = ffi.NULL
        if result != -errno.ENOTEMPTY:
            check(result)
        return result == 0


def _why(step: str, number: int) -> str:
    if step == "SO_ZEROCOPY":
        return f"this kernel has no MSG_ZEROCOPY (Linux 4.14 is needed): {os_error(number)}"
    if step == "probe" and number == errno.EOPNOTSUPP:
        return "this kernel's io_uring has no zero-copy send (Linux 6.1 is needed)"
    if number == errno.ENOSYS:
        return "this kernel has no io_uring"
    if number == errno.EPERM:
        return (
            "io_uring is forbidden to this process: by a seccomp filter, as in most containers, "
            "or by the sysctl kernel.io_uring_disabled"
        )
    if number == errno.ENOMEM:
        return f"not enough lockable memory even for a small ring ({step}): raise RLIMIT_MEMLOCK"
    return f"{step} failed: {os_error(number)}"
