"""Checking and pinning what is to be sent.

A buffer that is queued is read by the kernel until its generation is released.  It is kept alive by
a reference, and where the object allows it, export-locked: a ``bytearray`` that is pinned cannot be
resized, because the pin is an export of the buffer protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

from .._native.lib import SEND_MUTABLE, from_buffer, map_address, pointer_to

__all__ = ["Buffer", "Data", "exporter_of", "pin"]

Data: TypeAlias = Buffer | Sequence[Buffer]


def exporter_of(data: Buffer) -> object:
    """Return the object whose memory a buffer is: of a view, what it is a view of."""
    with memoryview(data) as view:
        return view.obj


def pin(data: Buffer) -> tuple[Any, int, int, object]:
    """Pin one buffer that is not ``bytes`` (those need nothing but a reference).

    A ``memoryview`` is pinned by what it is a view of, never by an export of itself: CPython
    crashes when a view that is exported becomes part of a reference cycle (gh-77894).

    :return: what the native part takes; the size in bytes; the flags of a send of it; the reference
        to keep.
    :raises TypeError: ``str``, or anything else without the buffer protocol.
    :raises BufferError: the buffer is not C-contiguous.
    """
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise BufferError("the buffer is not C-contiguous, so it cannot be sent as it lies")
        owner = view.obj
    # bytes cannot change, and so neither can a view of them; a read-only view of anything else says
    # nothing about its owner.
    flags = 0 if isinstance(owner, bytes) else SEND_MUTABLE
    pinned = from_buffer("char[]", data)
    # Of what is pinned: an object may answer each time that it is asked for its buffer.
    size = len(pinned)
    if type(data) is not memoryview:
        return pinned, size, flags, pinned
    try:
        reference = owner if isinstance(owner, bytes) else from_buffer("char[]", owner)
    except (BufferError, TypeError, ValueError):
        # An owner that cannot be exported whole: an array of which the view is a contiguous part.
        return pinned, size, flags, pinned
    return pointer_to(map_address(pinned)), size, flags, reference
