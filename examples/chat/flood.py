"""How much a member may send in a period of time."""

from __future__ import annotations

import time

__all__ = ["Allowance"]


class Allowance:
    """A bucket of tokens that fills with time.

    :param rate: tokens a second.
    :param burst: the most that it holds; it begins full.
    """

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._left = burst
        self._at = time.monotonic()

    def take(self, tokens: float = 1) -> bool:
        """Take tokens if there are enough; return whether there were."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < tokens:
            return False
        self._left -= tokens
        return True
