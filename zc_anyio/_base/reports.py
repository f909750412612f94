"""Reports; they are frozen, so that they do not change after they were given."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GroupStatistics", "Notification", "RingStatistics", "SendFailure"]


@dataclass(frozen=True, slots=True)
class Notification:
    """A generation was released: the kernel reads none of its buffers any more.

    :ivar tag: the tag of the context.
    :ivar generation: the number of the generation, counted from 0 in each context.
    """

    tag: int
    generation: int


@dataclass(frozen=True, slots=True)
class SendFailure:
    """A socket on which a send of a group failed.

    :ivar stream: the object that was given to ``send`` or ``broadcast``.
    :ivar error: why it failed, with the kernel's ``errno``.
    """

    stream: object
    error: OSError


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """Counters of a ring since it was opened.

    ``zero_copied`` and ``copied`` count sends, by the kernel's own report: a send is copied if any
    part of it was.  ``queued`` (not submitted yet), ``in_flight`` (submitted, result not seen) and
    ``held`` (result seen, notification not) count sends and are 0 when the ring is idle.

    :ivar driver: what carries the sends.
    :ivar sends: sends that were accepted; on an idle ring, the sum of ``zero_copied``, ``copied``,
        ``staged`` and ``failed``.
    :ivar bytes_sent: bytes that the kernel has taken.
    :ivar staged: sends whose bytes were first written into the ring's own memory.
    :ivar failed: sends that ended in an error or were cancelled.
    :ivar generations_open: generations not yet released.
    :ivar generations_released: generations whose buffers are all free again.
    :ivar requests: requests to send; one request may carry several sends.
    :ivar registered: requests that read from registered memory, of a pool or of staging.
    :ivar refused: zero-copy requests for which the kernel had no memory to pin (RLIMIT_MEMLOCK, or
        net.core.optmem_max); their bytes were copied.
    :ivar submits: times the kernel was entered to submit.
    :ivar completions: completions of sends: results and notifications.
    :ivar receivers: sockets that receive through the ring.
    :ivar receives: times that bytes were received through the ring.
    :ivar kernel_tls: sends that the kernel encrypted, see :mod:`zc_anyio.tls`; they count as
        copied, or as staged, since encrypting writes the bytes anew.
    """

    driver: str
    sends: int
    bytes_sent: int
    zero_copied: int
    copied: int
    staged: int
    failed: int
    queued: int
    in_flight: int
    held: int
    generations_open: int
    generations_released: int
    requests: int
    registered: int
    refused: int
    submits: int
    completions: int
    receivers: int
    receives: int
    kernel_tls: int


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Counters of a send group; the names mean the same as in :class:`RingStatistics`.

    :ivar unreleased_sends: sends whose buffers are still queued or still read by the kernel.
    :ivar unreleased_bytes: bytes of these, which the window bounds; a broadcast counts about once.
    """

    sends: int
    bytes_sent: int
    zero_copied: int
    copied: int
    staged: int
    failed: int
    unreleased_sends: int
    unreleased_bytes: int
    generations_open: int
    generations_released: int
