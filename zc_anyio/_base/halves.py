"""The two halves of a stream, each for one task at a time."""

from __future__ import annotations

import anyio

__all__ = ["Half"]


class Half:
    """An ``anyio.ResourceGuard`` whose flag is public.

    A function that is called for every message sets :attr:`taken` itself, which costs a fifth of a
    ``with`` statement.

    :param action: what the first task is doing, for the exception that a second task gets.
    :ivar taken: whether a task is using this half.
    """

    __slots__ = ("_action", "taken")

    def __init__(self, action: str) -> None:
        self._action = action
        self.taken: bool = False

    def busy(self) -> anyio.BusyResourceError:
        """Return what to raise in the second task."""
        return anyio.BusyResourceError(self._action)

    def __enter__(self) -> None:
        if self.taken:
            raise self.busy()
        self.taken = True

    def __exit__(self, *_exc_info: object) -> None:
        self.taken = False
