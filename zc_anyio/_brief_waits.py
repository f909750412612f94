"""Whether a task that waits for bytes stays awake for them.

Where a peer answers within microseconds, from another processor of the same machine, most of a
message's time and CPU goes into falling asleep and being woken: the sender interrupts a processor
that idles, and that has to come round.  On a virtual machine this costs more than all that a stream
does.  A task that takes turns of its event loop for a moment before it sleeps spares both sides
that.

It is done only while it has come right nearly always, and nobody else wants the processor: what
else came of it is CPU time, and a task that never sleeps is made to wait for its turn by the
scheduler, which lets one that was just woken run at once.
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
# Who did not get to look for so long shares the processor, or the event loop; so many short waits
# pass then.
STALL_SECONDS = 200e-6
STALLED = 1 << 14


class BriefWaits:
    """What a receiver has learned from its waits."""

    __slots__ = ("_begun", "_score")

    def __init__(self) -> None:
        # Short waits against long ones; from 0 on it stays awake, and counts what came of that.
        self._score = -TRUST
        self._begun = 0.0

    def begin(self) -> bool:
        """Begin a wait; return whether to stay awake and look, until :meth:`go_on` says no."""
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

    def came(self) -> None:
        """It has come while the task was awake."""
        if perf_counter() - self._begun >= STALL_SECONDS:
            self._score = -STALLED
        elif self._score < TRUST:
            self._score += 1

    def woken(self) -> None:
        """It has come, and woken the task."""
        if self._score >= 0:
            return
        if perf_counter() - self._begun < SHORT_SECONDS:
            self._score += 1
        elif self._score > -TRUST:
            self._score -= 1
