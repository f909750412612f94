"""Whether a task that waits for bytes stays awake for them.

Where a peer on another processor of the same machine answers within microseconds, most of a
message's time and CPU goes into falling asleep and being woken: the sender interrupts an idle
processor, and that takes time to wake up.  On a virtual machine this costs more than everything
else that a stream does.  A task that takes turns of its event loop for a moment before it sleeps
spares both sides this cost.

It is done only for answers, that is, if the stream has sent since it last received.  A task that
receives a long transfer awake gets it in more and smaller pieces, which costs more than sleeping.
It is done only while nearly every such wait succeeds, since one in vain wastes CPU time.  And it is
done only while nothing else wants the processor: the scheduler makes a task that never sleeps wait
for its turn, but runs one that was just woken at once.
"""

from __future__ import annotations

from time import perf_counter

__all__ = ["BriefWaits"]

AWAKE_SECONDS = 50e-6
# A wait that took no longer than this, the waking included, might have ended within AWAKE_SECONDS.
SHORT_SECONDS = 100e-6
# How many more short waits than long ones are needed before staying awake is tried, and tried again
# after more than one try in FAILURE was in vain.  Where it never pays, AWAKE_SECONDS are lost once
# in that many messages.
TRUST = 128
FAILURE = 16
# A larger answer arrives in pieces.
LARGE = 16 << 10
# A task that could not look for this long shares the processor or the event loop; it does not try
# again for STALLED short waits.
STALL_SECONDS = 200e-6
STALLED = 1 << 14


class BriefWaits:
    """What a stream has learned from its waits.

    :ivar sent: whether it has sent since it last received.
    """

    __slots__ = ("_begun", "_score", "sent")

    def __init__(self) -> None:
        # Below 0: short waits minus long ones, counted up from -TRUST.  From 0 on the task stays
        # awake, and its successes and failures are counted.
        self._score = -TRUST
        self._begun = 0.0
        self.sent: bool = False

    def begin(self) -> bool:
        """Begin a wait; return whether to stay awake and look until :meth:`go_on` says no."""
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
        """Note that ``size`` bytes have come while the task was awake."""
        self.sent = False
        if perf_counter() - self._begun >= STALL_SECONDS:
            self._score = -STALLED
        elif size > LARGE:
            self._score = -TRUST
        elif self._score < TRUST:
            self._score += 1

    def woken(self, size: int) -> None:
        """Note that ``size`` bytes have come and woken the task."""
        if not self.sent:
            return
        self.sent = False
        if self._score >= 0:
            return
        if size <= LARGE and perf_counter() - self._begun < SHORT_SECONDS:
            self._score += 1
        elif self._score > -TRUST:
            self._score -= 1
