"""Whether a task that waits for bytes stays awake for them.

Where a peer answers within microseconds, from another processor of the same machine, most of a
message's time and CPU goes into falling asleep and being woken: the sender interrupts a processor
that idles, and that has to come round.  On a virtual machine this costs more than all that a stream
does.  A task that takes turns of its event loop for a moment before it sleeps spares both sides
that.

It is done only for answers: the stream has sent since it last received.  Who receives a long
transfer awake gets it in more and smaller pieces, which costs more than sleeping.  And only while
it has come right nearly always, and nobody else wants the processor: what else came of it is CPU
time, and a task that never sleeps is made to wait for its turn by the scheduler, which lets one
that was just woken run at once.
"""

from __future__ import annotations

from time import perf_counter

__all__ = ["BriefWaits"]

AWAKE_SECONDS = 50e-6
# A wait that took no longer, the waking included, might have ended within that.
SHORT_SECONDS = 100e-6
# So many more short waits than long ones are needed before it is tried, and again when more than
# one try in FAILURE was in vain.  Where it never pays, AWAKE_SECONDS are lost in so many messages.
TRUST = 128
FAILURE = 16
# An answer of more bytes arrives in pieces.
LARGE = 16 << 10
# Who did not get to look for so long shares the processor, or the event loop; so many short waits
# pass then.
STALL_SECONDS = 200e-6
STALLED = 1 << 14


class BriefWaits:
    """What a stream has learned from its waits.

    :ivar sent: whether it has sent since it last received.
    """

    __slots__ = ("_begun", "_score", "sent")

    def __init__(self) -> None:
        # Short waits against long ones; from 0 on it stays awake, and counts what came of that.
        self._score = -TRUST
        self._begun = 0.0
        self.sent: bool = False

    def begin(self) -> bool:
        """Begin a wait; return whether to stay awake and look, until :meth:`go_on` says no."""
        if not self.sent:
            return False
        self._begun = perf_counter()
        return self._score >= 0

    def go_on(self) -> bool:
        """Nothing has come yet; return whether to look again before falling asleep."""
        waited = perf_counter() - self._begun
        if waited < AWAKE_SECONDS:
            return True
        self._score -= FAILURE
        if waited >= STALL_SECONDS:
            self._score = -STALLED
        elif self._score < 0:
            self._score = -TRUST
        return False

    def came(self, size: int) -> None:
        """So many bytes have come while the task was awake."""
        self.sent = False
        if perf_counter() - self._begun >= STALL_SECONDS:
            self._score = -STALLED
        elif size > LARGE:
            self._score = -TRUST
        elif self._score < TRUST:
            self._score += 1

    def woken(self, size: int) -> None:
        """So many bytes have come, and woken the task."""
        if not self.sent:
            return
        self.sent = False
        if self._score >= 0:
            return
        if size <= LARGE and perf_counter() - self._begun < SHORT_SECONDS:
            self._score += 1
        elif self._score > -TRUST:
            self._score -= 1
