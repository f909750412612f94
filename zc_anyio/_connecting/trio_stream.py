"""A trio stream over a stream of this library; the only module that needs trio."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import trio

from ..streams import ZeroCopySocketStream

__all__ = ["TrioStream"]

DEFAULT_RECEIVE = 65536


class TrioStream(trio.abc.HalfCloseableStream):
    """See :func:`as_trio_stream`."""

    def __init__(self, stream: ZeroCopySocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as :meth:`ZeroCopySocketStream.send` does, with trio's exceptions."""
        with _trio_errors():
            await self._stream.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until sending would probably not wait, or would fail."""
        with _trio_errors():
            await self._stream.wait_send_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, ``b""`` at the end of the stream."""
        size = DEFAULT_RECEIVE if max_bytes is None else operator.index(max_bytes)
        with _trio_errors():
            try:
                return await self._stream.receive(size)
            except anyio.EndOfStream:
                return b""

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes."""
        with _trio_errors():
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


@contextmanager
def _trio_errors() -> Iterator[None]:
    try:
        yield
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError(*exc.args) from exc.__cause__
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError(*exc.args) from exc.__cause__
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError(*exc.args) from None
