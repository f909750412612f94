"""Waiting while buffers are at stake, whatever comes out of the wait.

A wait can end by more than what it waits for: ``KeyboardInterrupt``, which trio raises in it,
``SystemExit``, asyncio's ``Task.cancel``, which no shielded scope holds back, anything that is
thrown into the task.  If the scope of a buffer were left by that, the program would have a buffer
that the kernel still reads.  So the wait goes on, for as long as it is allowed to, and what came
out of it is raised afterwards.

After ``GeneratorExit`` nothing may be awaited: the coroutine is being closed, by hand or because
its event loop is gone.  Then turns are taken here and the thread waits, for a second at most.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

import anyio
from anyio import CancelScope

from .reaper import Reaper

__all__ = ["RESET_SECONDS", "Leaving"]

# What the kernel gives back at once when asked by a reset; a datagram in a device queue is not.
RESET_SECONDS = 1.0


class Leaving:
    """The waits of one scope that is being left.

    :param raised: what the scope is left by.
    :ivar raised: that, or what has come out of a wait since.
    """

    def __init__(self, reaper: Reaper, raised: BaseException | None = None) -> None:
        self._reaper = reaper
        self._left_by = raised
        self.raised: BaseException | None = raised

    def end(self) -> None:
        """Raise what has come out of a wait, if that is not what the scope is left by anyway."""
        raised, self.raised = self.raised, None
        if raised is None or raised is self._left_by:
            return
        try:
            raise raised
        finally:
            # No cycle of the exception and this frame: it would keep buffers until it is collected.
            del raised

    async def until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until ``done()``, for ``seconds`` at most; raises nothing."""
        if self._may_await():
            deadline = anyio.current_time() + seconds
            while not self._is_over(done) and anyio.current_time() < deadline:
                await self._wait_turn(deadline)
                if not self._may_await():
                    break
            else:
                return
        self._block(done, min(seconds, RESET_SECONDS))

    async def _wait_turn(self, deadline: float) -> None:
        try:
            with CancelScope(deadline=deadline, shield=True):
                try:
                    await self._reaper.wait_turn()
                except GeneratorExit as exc:
                    self.raised = exc
        except BaseException as exc:
            # A scope objects to being left outside of its task.

            if self._may_await() and self._may_replace():
                self.raised = exc

    def _block(self, done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._reaper.wake_fd, select.POLLIN)
        while not self._is_over(done) and (left := end - time.monotonic()) > 0:
            self._reaper.turn()
            if not self._is_over(done) and not self._reaper.more:
                poll.poll(left * 1000)

    def _is_over(self, done: Callable[[], bool]) -> bool:
        # What is done may not be told yet: then a buffer is still referred to.
        return self._reaper.stopped is not None or (not self._reaper.more and done())

    def _may_await(self) -> bool:
        return not isinstance(self.raised, GeneratorExit)

    def _may_replace(self) -> bool:
        """Whether what comes now is to be raised, and not what came before it.

        A cancellation gives way, and an error of the scope's body, but not the end of the program.
        """
        if self.raised is None or isinstance(self.raised, anyio.get_cancelled_exc_class()):
            return True
        return self.raised is self._left_by and isinstance(self.raised, Exception)
