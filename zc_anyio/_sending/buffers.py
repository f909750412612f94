"""Checking and pinning what is to be sent.

The kernel may read a queued buffer until its generation is released.  Until then a reference keeps
the buffer alive, and where the object allows it, a pin keeps it from being resized: the pin is an
export of the buffer protocol.
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
    """Return the object whose memory a buffer is; for a view, the object that it is a view of."""
    with memoryview(data) as view:
        return view.obj


def pin(data: Buffer) -> tuple[Any, int, int, object]:
    """Pin one buffer that is not ``bytes`` (``bytes`` need only a reference).

    A ``memoryview`` is pinned by an export of what it is a view of, never of itself: CPython
    crashes when an exported view becomes part of a reference cycle (gh-77894).

    :return: what the native part takes; the size in bytes; the flags for a send; the reference to
        keep.
    :raises TypeError: ``str``, or anything else without the buffer protocol.
    :raises BufferError: the buffer is not C-contiguous.
    """
    with memoryview(data) as view:
        if not view.c_contiguous:
            raise BufferError("the buffer is not C-contiguous, so it cannot be sent in place")
        owner = view.obj
    # bytes cannot change, so a view of them cannot either.  A read-only view of anything else may
    # have an owner that changes it.
    flags = 0 if isinstance(owner, bytes) else SEND_MUTABLE
    pinned = from_buffer("char[]", data)
    # The size of the pinned export: an object may give a different buffer each time it is asked.
    size = len(pinned)
    if type(data) is not memoryview:
        return pinned, size, flags, pinned
    try:
        reference = owner if isinstance(owner, bytes) else from_buffer("char[]", owner)
    except (BufferError, TypeError, ValueError):
        # The owner cannot be exported whole: it is an array of which the view is a contiguous part.
        return pinned, size, flags, pinned
    return pointer_to(map_address(pinned)), size, flags, reference
