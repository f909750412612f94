"""Waiting while buffers are at stake, whatever interrupts the wait.

A wait can be interrupted by ``KeyboardInterrupt``, which trio raises in it, by ``SystemExit``, by
asyncio's ``Task.cancel``, which no shielded scope holds back, or by anything else that is thrown
into the task.  If that left the scope of a buffer, the program would have a buffer that the kernel
still reads.  So the wait goes on, for as long as it is allowed to, and the exception is raised
afterwards.

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

# After a reset the kernel gives buffers back at once, except for a datagram in a device's queue.
RESET_SECONDS = 1.0


class Leaving:
    """The waits of one scope that is being left.

    :param raised: the exception by which the scope is left, if any.
    :ivar raised: that, or an exception that has interrupted a wait since.
    """

    def __init__(self, reaper: Reaper, raised: BaseException | None = None) -> None:
        self._reaper = reaper
        self._left_by = raised
        self.raised: BaseException | None = raised

    def end(self) -> None:
        """Raise the exception that interrupted a wait, unless the scope is left by it anyway."""
        raised, self.raised = self.raised, None
        if raised is None or raised is self._left_by:
            return
        try:
            raise raised
        finally:
            # A cycle of the exception and this frame would keep buffers until it is collected.
            del raised

    async def until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until ``done()`` is true, for ``seconds`` at most; raises nothing."""
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
            # After GeneratorExit the scope may object to being left outside its task.
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
        # While events are still to be told, a buffer may still be referred to.
        return self._reaper.stopped is not None or (not self._reaper.more and done())

    def _may_await(self) -> bool:
        return not isinstance(self.raised, GeneratorExit)

    def _may_replace(self) -> bool:
        """Whether a new exception is to be raised in place of the one before it.

        A cancellation and an error of the scope's body give way to it; the end of the program,
        such as ``KeyboardInterrupt``, does not.
        """
        if self.raised is None or isinstance(self.raised, anyio.get_cancelled_exc_class()):
            return True
        return self.raised is self._left_by and isinstance(self.raised, Exception)
