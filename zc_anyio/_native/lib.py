"""The native part's constants and functions; the only module that imports the extension.

Negative errnos become exceptions here and in ``ring.py``, and nowhere else.  The callers of
:func:`queue` and :func:`broadcast` handle those that belong to the ordinary life of a send:
``EAGAIN``, the window is full, and ``EPIPE``, the socket is broken.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol, cast

from .._base.errors import os_error

if sys.platform == "linux":
    from ._zc import ffi, lib
else:  # pragma: no cover - importing must work everywhere, opening a ring says why it cannot
    ffi = lib = None

__all__ = [
    "AGAIN",
    "FAILED",
    "IDLE",
    "LATER",
    "MORE",
    "NO_ADDRESS",
    "PAGES_ORDINARY",
    "PAGES_RESERVED",
    "PAGES_TRANSPARENT",
    "POLICIES",
    "READY",
    "RELEASED",
    "RESULT",
    "RX_POLL",
    "RX_RECEIVE",
    "SEND_FLUSH",
    "SEND_MUTABLE",
    "SEND_UNSTAGED",
    "SENT_COPIED",
    "SENT_FLAGS",
    "SENT_KICK",
    "SENT_SHIFT",
    "SENT_TURN",
    "WINDOW",
    "Datagrams",
    "FileMemory",
    "SocketInfo",
    "address_of",
    "broadcast",
    "check",
    "export",
    "ffi",
    "from_buffer",
    "lib",
    "map_address",
    "map_memory",
    "part_of",
    "pointer_to",
    "process_forks",
    "queue",
    "queue_or_send",
    "queue_rest",
    "queue_to",
    "queue_vector",
    "rx_consume",
    "rx_data",
    "rx_is_bulk",
    "rx_ready",
    "send_alone",
    "socket_info",
    "unpack",
]


def _constant(name: str) -> int:
    return 0 if lib is None else getattr(lib, name)


def _share_among_threads(*objects: object) -> None:
    """Defer the counting of references to objects that all threads use all the time.

    Free-threaded Python counts references to an extension's functions at each call.  Two threads
    that send then write to the same memory: they did 1.4 times the sends of one, and not 1.9.
    """
    if "t" not in getattr(sys, "abiflags", ""):
        return
    import ctypes

    # Python 3.14 has it; a later version that lacks it may not need it.
    share = getattr(ctypes.pythonapi, "PyUnstable_Object_EnableDeferredRefcount", None)
    if share is not None:
        share.argtypes = [ctypes.py_object]
        for shared in objects:
            share(shared)


# Read once: attributes of `lib` are slow to look up.
RELEASED: Final = _constant("ZC_EV_RELEASED")
FAILED: Final = _constant("ZC_EV_FAILED")
WINDOW: Final = _constant("ZC_EV_WINDOW")
IDLE: Final = _constant("ZC_EV_IDLE")
RESULT: Final = _constant("ZC_EV_RESULT")
READY: Final = _constant("ZC_EV_READY")
LATER: Final = _constant("ZC_EV_LATER")
AGAIN: Final = _constant("ZC_EV_AGAIN")
MORE: Final = _constant("ZC_EV_MORE")
SEND_MUTABLE: Final = _constant("ZC_SEND_MUTABLE")
SEND_UNSTAGED: Final = _constant("ZC_SEND_UNSTAGED")
SEND_FLUSH: Final = _constant("ZC_SEND_FLUSH")
PAGES_ORDINARY: Final = _constant("ZC_PAGES_ORDINARY")
PAGES_TRANSPARENT: Final = _constant("ZC_PAGES_TRANSPARENT")
PAGES_RESERVED: Final = _constant("ZC_PAGES_RESERVED")
RX_RECEIVE: Final = _constant("ZC_RX_RECEIVE")
RX_POLL: Final = _constant("ZC_RX_POLL")
POLICIES: Final = {
    name: _constant(f"ZC_POLICY_{name.upper()}") for name in ("auto", "always", "never")
}
SENT_TURN: Final = _constant("ZC_SENT_TURN")
SENT_KICK: Final = _constant("ZC_SENT_KICK")
SENT_COPIED: Final = _constant("ZC_SENT_COPIED")
SENT_SHIFT: Final = _constant("ZC_SENT_SHIFT")
SENT_FLAGS: Final = (1 << SENT_SHIFT) - 1
queue: Final[Callable[..., int]] = getattr(lib, "zc_queue", None)  # type: ignore[assignment]
# (pointer, size): an object that exports memory, and keeps the pointer's memory alive.
export: Final[Callable[[Any, int], Any]] = getattr(ffi, "buffer", None)  # type: ignore[assignment]
# Like `queue`, for a ring instead of a core; it hands a send that need not wait to the kernel.
queue_or_send: Final[Callable[..., int]] = getattr(lib, "zc_queue_or_send", None)  # type: ignore[assignment]
# What a scope sends before it has a context, and then the rest of that send.
send_alone: Final[Callable[..., int]] = getattr(lib, "zc_send_alone", None)  # type: ignore[assignment]
queue_rest: Final[Callable[..., int]] = getattr(lib, "zc_queue_rest", None)  # type: ignore[assignment]
unpack: Final[Callable[[Any, int], Any]] = getattr(ffi, "unpack", None)  # type: ignore[assignment]
# See receive.c.
rx_ready: Final[Callable[[Any], int]] = getattr(lib, "zc_rx_ready", None)  # type: ignore[assignment]
rx_data: Final[Callable[[Any], Any]] = getattr(lib, "zc_rx_data", None)  # type: ignore[assignment]
rx_consume: Final[Callable[[Any, int], int]] = getattr(lib, "zc_rx_consume", None)  # type: ignore[assignment]
rx_is_bulk: Final[Callable[[Any], int]] = getattr(lib, "zc_rx_is_bulk", None)  # type: ignore[assignment]
from_buffer: Final[Callable[..., Any]] = getattr(ffi, "from_buffer", None)  # type: ignore[assignment]
NO_ADDRESS: Final[Any] = getattr(ffi, "NULL", None)
_share_among_threads(lib, queue, queue_or_send, send_alone, queue_rest, unpack, from_buffer)
_share_among_threads(rx_ready, rx_data, rx_consume, rx_is_bulk)


class SocketInfo(Protocol):
    """What the kernel says about a descriptor."""

    @property
    def inode(self) -> int: ...
    @property
    def type(self) -> int: ...
    @property
    def connected(self) -> int: ...


def check(result: int, note: str = "") -> int:
    """Return a result, or raise the ``OSError`` that a negative one stands for."""
    if result < 0:
        raise os_error(-result, note)
    return result


def socket_info(fd: int) -> SocketInfo:
    """Return what kind of socket a descriptor is; raise ``OSError`` if it is not a socket."""
    info: Any = ffi.new("struct zc_socket_info *")
    check(lib.zc_socket_info(fd, info))
    return cast("SocketInfo", info)


def process_forks() -> None:
    """Stop trusting the counted numbers of ``MSG_ZEROCOPY``: a child process may send as well."""
    lib.zc_forked()


def map_address(pinned: Any) -> int:
    """Return where a pinned buffer lies in memory."""
    return int(ffi.cast("uintptr_t", pinned))


def pointer_to(address: int) -> Any:
    """Return an address as the native part takes it; the caller keeps the memory alive."""
    return ffi.cast("char *", address)


def map_memory(size: int, pages: int) -> tuple[Any, int]:
    """Map memory with a kind of pages; return it, and how many bytes of it to register.

    It is unmapped when nothing refers to it any more.

    :raises OSError: no memory, or no reserved huge pages.
    """
    memory = lib.zc_map(size, pages)
    if memory == ffi.NULL:
        raise os_error(ffi.errno)
    pinned = ffi.gc(memory, lambda mapped: lib.zc_unmap(mapped, size, pages))
    return pinned, lib.zc_mapped_size(size, pages)


def part_of(pinned: Any, offset: int) -> Any:
    """Return a pointer into pinned memory that keeps the memory pinned."""
    return ffi.gc(pinned + offset, lambda _, _keep=pinned: None)


@lru_cache(maxsize=1024)
def address_of(host: str, port: int, flow: int = 0, scope: int = 0) -> bytes:
    """Return the ``struct sockaddr`` of a numeric address; raise ``ValueError`` for any other."""
    out = ffi.new("char[28]")
    size = lib.zc_address(host.encode(), port, flow, scope, out)
    if size < 0:
        raise ValueError(f"{host!r} is not a numeric IPv4 or IPv6 address")
    return bytes(ffi.buffer(out, size))


def queue_to(
    core: Any,
    context: Any,
    socket: Any,
    pinned: Sequence[Any],
    sizes: Sequence[int],
    flags: int,
    address: bytes,
) -> int:
    """Queue several buffers as one datagram to an address."""
    pointers = _pointers(pinned)
    result: int = lib.zc_queue_to(
        core, context, socket, pointers, sizes, len(sizes), flags, address, len(address)
    )
    return result


class Datagrams:
    """Buffers as the native part takes them, to be sent as datagrams to one address.

    :param pinned: the buffers; the caller keeps them alive.
    :param to: a packed address; ``NO_ADDRESS``: the one that the socket is connected to.
    """

    def __init__(self, pinned: Sequence[Any], sizes: Sequence[int], to: Any) -> None:
        self._pointers = ffi.new("char *[]", _pointers(pinned))
        self._sizes = ffi.new("size_t[]", sizes)
        self._count = len(sizes)
        self._to = to, len(to) if to else 0
        self._taken = ffi.new("size_t *")

    def queue_segments(
        self, core: Any, context: Any, socket: Any, part: range, segment: int, flags: int
    ) -> int:
        """Queue some bytes of the buffers as datagrams of one size."""
        parts = self._pointers, self._sizes, self._count, part.start, len(part)
        result: int = lib.zc_queue_segments(
            core, context, socket, *parts, segment, flags, *self._to
        )
        return result

    def queue_or_send_segments(
        self, ring: Any, context: Any, socket: Any, segment: int, flags: int
    ) -> int:
        """Queue all bytes as datagrams of one size; what need not wait goes to the kernel."""
        parts = self._pointers, self._sizes, self._count
        result: int = lib.zc_queue_or_send_segments(
            ring, context, socket, *parts, segment, flags, *self._to
        )
        return result

    def queue_many(
        self, core: Any, context: Any, socket: Any, part: range, flags: int
    ) -> tuple[int, int]:
        """Queue some of the buffers as a datagram each; return the result, and how many fitted."""
        parts = self._pointers + part.start, self._sizes + part.start, len(part)
        result: int = lib.zc_queue_many(
            core, context, socket, *parts, flags, *self._to, self._taken
        )
        return result, self._taken[0] if result >= 0 else 0

    def queue_or_send_many(
        self, ring: Any, context: Any, socket: Any, part: range, flags: int
    ) -> tuple[int, int]:
        """Do what :meth:`queue_many` does; what need not wait goes to the kernel."""
        parts = self._pointers + part.start, self._sizes + part.start, len(part)
        result: int = lib.zc_queue_or_send_many(
            ring, context, socket, *parts, flags, *self._to, self._taken
        )
        return result, self._taken[0] if result >= 0 else 0


def _pointers(pinned: Sequence[Any]) -> list[Any]:
    # cffi takes bytes for `const char *` only as a direct argument.
    if set(map(type, pinned)) == {bytes}:
        return list(map(from_buffer, pinned))
    return [from_buffer("char[]", part) if type(part) is bytes else part for part in pinned]


def queue_vector(
    core: Any, context: Any, socket: Any, pinned: Sequence[Any], sizes: Sequence[int], flags: int
) -> int:
    """Queue several buffers as one send; the result is that of ``zc_queue``."""
    pointers = _pointers(pinned)
    result: int = lib.zc_queue_vector(core, context, socket, pointers, sizes, len(sizes), flags)
    return result


def broadcast(
    core: Any, context: Any, sockets: Sequence[Any], pinned: Any, size: int, flags: int
) -> tuple[int, list[int]]:
    """Queue one buffer on many sockets; return the result, and an errno or 0 for each socket."""
    errors = ffi.new("int32_t[]", len(sockets))
    result: int = lib.zc_broadcast(
        core, context, sockets, len(sockets), pinned, size, flags, errors
    )
    return result, ffi.unpack(errors, len(sockets))


class FileMemory:
    """A map of a file from its beginning.

    :param fd: its descriptor, which is closed when the file is unmapped, or could not be mapped.
    :ivar pointer: where it begins; it is unmapped when nobody refers to this pointer.
    """

    def __init__(self, fd: int, size: int) -> None:
        out = ffi.new("char **")
        failed = lib.zc_file_map(fd, size, out)
        if failed:
            os.close(fd)
            check(failed)
        unmap = lib.zc_file_unmap

        def end(pointer: Any) -> None:
            unmap(pointer, size)
            os.close(fd)

        self.pointer: Any = ffi.gc(out[0], end)

    def is_resident(self, offset: int, size: int) -> bool:
        """Whether a part is in memory; ``True`` for all of a file that this user may not write."""
        return bool(lib.zc_file_is_resident(self.pointer + offset, size) == 1)

    def populate(self, offset: int, size: int) -> None:
        """Read a part from the disk; raises ``OSError``, ``EFAULT`` past the end of the file."""
        check(lib.zc_file_populate(self.pointer + offset, size))

    def leave(self, offset: int, size: int) -> None:
        """Refer to the pages of a part no longer, until they are used again."""
        check(lib.zc_file_leave(self.pointer + offset, size))
