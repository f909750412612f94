"""Tx contexts by hand: tags, generations and FLUSH as io_uring's zero-copy send first had them.

The interface that was proposed for Linux in 2021 registered an array of tagged contexts with a
ring.  Each send named one of them, a flag ended a context's generation, and the kernel gave one
notification, with the tag and the number, when all buffers of a generation were free.  Linux got
another interface; this module has the proposed one, in user space.  Most programs want
:func:`zc_anyio.send_group`, which does the bookkeeping.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

import anyio
import anyio.lowlevel

from ._base.errors import os_error
from ._native.lib import SEND_FLUSH
from ._ring.ring import Ring
from ._sending.buffers import Data
from ._sending.senders import DEFAULT_WINDOW, Sender

__all__ = [
    "MAX_TX_CONTEXTS",
    "TxContext",
    "TxContextError",
    "register_tx_contexts",
    "unregister_tx_contexts",
]

# IORING_MAX_TX_CTX of the proposal.
MAX_TX_CONTEXTS = 1024


class TxContextError(OSError):
    """Contexts were used wrongly; ``errno`` is the one that the proposal gave for it."""


class TxContext(Sender):
    """A tagged context: it numbers its generations from 0, and tells when each is released.

    Made by :func:`register_tx_contexts`.

    :ivar tag: the tag it was registered with.
    """

    def __init__(self, ring: Ring, tag: int, window: int) -> None:
        super().__init__()
        self.tag = tag
        self._registered = True
        self._start(ring, tag=tag, window=window, zero_copy=None)
        self._context.by_hand()
        # Made now, so that the first generation's notification is in it.
        self._notifications = self._context.notifications

    def __repr__(self) -> str:
        return f"<TxContext {self.tag:#x}>"

    async def send(self, stream: object, data: Data, *, flush: bool = False) -> None:
        """Queue one send in the open generation, as :meth:`zc_anyio.SendGroup.send` does.

        :param stream: as for :meth:`zc_anyio.SendGroup.send`.
        :param data: as for :meth:`zc_anyio.SendGroup.send`.
        :param flush: this send is the last of its generation.  The call then waits for its result,
            and the generation ends only if the send succeeds.  Sends that other tasks queue
            meanwhile belong to the same generation.  Cancelling the call does not take the send
            back.
        :raises anyio.BrokenResourceError: an earlier send failed; with ``flush``, also this one.

        Raises what :meth:`zc_anyio.SendGroup.send` raises.
        """
        if not flush:
            await super().send(stream, data)
            return
        before = self._ring._native.ticket(self._context.handle)
        while not self._queue(stream, data, SEND_FLUSH):
            await self._wait_window()
        if self._ring._native.ticket(self._context.handle) == before:
            # Sending nothing always succeeds.
            self.flush()
            await anyio.lowlevel.checkpoint()
            return
        if error := await self._context.wait_result():
            self._mark_raised(stream)
            raise anyio.BrokenResourceError from os_error(error)

    def _check(self) -> None:
        if not self._registered:
            raise anyio.ClosedResourceError("the context is not registered")
        self._ring.check()


def register_tx_contexts(
    ring: Ring, tags: Iterable[int], *, window: int = DEFAULT_WINDOW
) -> list[TxContext]:
    """Register one context for each tag; a context's index is its place in the returned list.

    :param ring: an open ring that has no contexts registered.
    :param tags: 1 to 1024 numbers of up to 64 bits, of the caller's choice; they may be equal.
    :param window: bytes of each context that may be unreleased before a send waits.
    :raises TxContextError: ``EINVAL``, there are no tags, or one does not fit into 64 bits;
        ``EMFILE``, there are more than 1024; ``EBUSY``, contexts are registered already.
    :raises RuntimeError: the ring is closed, or belongs to another thread or event loop.
    """
    ring.check_loop()
    tags = list(tags)
    if not tags or not all(0 <= tag < 1 << 64 for tag in tags) or window <= 0:
        raise _error(errno.EINVAL)
    if len(tags) > MAX_TX_CONTEXTS:
        raise _error(errno.EMFILE)
    if ring._tx_contexts is not None:
        raise _error(errno.EBUSY)
    contexts = [TxContext(ring, tag, window) for tag in tags]
    ring._tx_contexts = contexts
    return contexts


async def unregister_tx_contexts(ring: Ring) -> None:
    """Flush open generations, wait for the release of all, and end the contexts and channels.

    If the wait is cancelled, the contexts are unregistered all the same, and the ring keeps what is
    held.

    :param ring: the ring that the contexts are registered with.
    :raises TxContextError: ``ENXIO``, no contexts are registered.
    """
    ring.check_loop()
    contexts: list[TxContext] | None = ring._tx_contexts
    ring._tx_contexts = None
    if contexts is None:
        raise _error(errno.ENXIO)
    for context in contexts:
        context._registered = False
        context._context.take_no_more()
        context._context.flush(even_empty=False)
    ring._reaper.turn()
    try:
        for context in contexts:
            await context._context.wait_all_released()
    finally:
        for context in contexts:
            context._context.close()


def _error(number: int) -> TxContextError:
    return TxContextError(number, os.strerror(number))
