"""Requests of a peer for new keys, which the kernel cannot have.

TLS 1.3 lets a peer ask the other end for new keys, which has to change them before it sends any
more data.  OpenSSL 3.0 changes its own and leaves the kernel's as they are, and Linux before 6.14
takes none on a connection that has some.  The ``ssl`` module tells of a request only by the
function that it calls for each message.
"""

from __future__ import annotations

import ssl
import weakref
from functools import cache
from typing import Any, Protocol

__all__ = ["Asked", "tell_of_requests"]

# RFC 8446, appendix B: types of a record and a message, and what is behind its head of four bytes.
HANDSHAKE, KEY_UPDATE, REQUESTED = 22, 24, b"\1"
HEAD = 4


class Asked(Protocol):
    """A stream that is told of a request."""

    def _asked_for_keys(self) -> None: ...


_streams: weakref.WeakKeyDictionary[ssl.SSLSocket, weakref.ref[Asked]]
_streams = weakref.WeakKeyDictionary()


def tell_of_requests(tls: ssl.SSLSocket, stream: Asked) -> None:
    """Tell a stream when its peer asks for new keys, before it receives what follows."""
    # With another context the session has no certificate for a peer that asks for one only now.
    if tls.version() == "TLSv1.3" and not tls.context.post_handshake_auth:
        _streams[tls] = weakref.ref(stream)
        # The program's context is not changed, and stays the socket's to those who ask.
        session: Any = tls._sslobj  # type: ignore[attr-defined]
        session.context = _listening()


@cache
def _listening() -> ssl.SSLContext:
    context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context._msg_callback = _on_message
    return context  # type: ignore[no-any-return]


def _on_message(
    tls: ssl.SSLSocket, direction: str, _version: int, content: int, message: int, data: bytes
) -> None:
    if (
        direction == "read"
        and content == HANDSHAKE
        and message == KEY_UPDATE
        and data[HEAD:] == REQUESTED
        and (reference := _streams.get(tls)) is not None
        and (stream := reference()) is not None
    ):
        stream._asked_for_keys()
