"""TLS over streams of a ring, by the kernel where it can, else in this process.

The kernel encrypts plaintext from where it lies into its records, so send groups, broadcasts and
files go to a TLS stream as to any other.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypeAlias

import anyio
from anyio.abc import AnyByteStream, TaskGroup
from anyio.streams import tls as anyio_tls

from ._base.kernel_tls import why_no_kernel_tls
from ._tls.attributes import KernelTLSAttribute
from ._tls.in_memory import InMemoryTLSStream
from ._tls.over_socket import KernelTLSStream, SocketTLSStream, handshake
from .streams import ZeroCopySocketStream, ZeroCopyUNIXSocketStream

__all__ = [
    "InMemoryTLSStream",
    "KernelTLSAttribute",
    "KernelTLSError",
    "KernelTLSStream",
    "SocketTLSStream",
    "TLSListener",
    "wrap_tls",
]

Kernel: TypeAlias = Literal["auto", "never", "require"]

HANDSHAKE_SECONDS = 30.0


class KernelTLSError(RuntimeError):
    """The kernel's TLS was required, and the connection cannot have it; the message says why."""


async def wrap_tls(
    stream: AnyByteStream,
    ssl_context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | None = None,
    standard_compatible: bool = True,
    kernel: Kernel = "auto",
    handshake_timeout: float = HANDSHAKE_SECONDS,
) -> anyio_tls.TLSStream:
    """Do a TLS handshake over a stream, and return the stream of what is encrypted.

    If the kernel encrypts, send groups, ``broadcast`` and ``send_file`` take the result, and what
    they send keeps its order with ``send``.  Otherwise it works as anyio's ``TLSStream`` does, and
    groups refuse it.  :class:`KernelTLSAttribute` tells which it is, and why.

    If the call raises or is cancelled, ``stream`` is still open, and the caller's to close; after
    that nothing else can be done with it.

    :param stream: of this library for the kernel's TLS, with nothing received ahead; any other
        byte stream gets TLS in this process.
    :param ssl_context: as of the standard library; it is not changed.
    :param server_side: whether this end is the server.
    :param server_hostname: name that the server's certificate must have, on the client's side.
    :param standard_compatible: as of :meth:`anyio.streams.tls.TLSStream.wrap`: whether closing
        exchanges ``close_notify``, and an end without it is an error.
    :param kernel: ``"auto"``: the kernel encrypts if it can; ``"never"``; ``"require"``: raise if
        it cannot encrypt what is sent.
    :param handshake_timeout: seconds.
    :raises ssl.SSLError: the handshake failed: a wrong certificate, no TLS at the other end ...
    :raises anyio.BrokenResourceError: the connection ended during the handshake.
    :raises anyio.BusyResourceError: a task is receiving from ``stream``.
    :raises TimeoutError: the handshake took too long.
    :raises KernelTLSError: ``kernel="require"``, and the kernel does not encrypt.
    """
    if kernel not in ("auto", "never", "require"):
        raise ValueError(f"kernel must be 'auto', 'never' or 'require', not {kernel!r}")
    host = _encoded(server_hostname)
    plain, reason = _for_kernel(stream, ssl_context, kernel)
    with anyio.fail_after(handshake_timeout):
        if plain is not None:
            over_socket = await handshake(
                plain,
                ssl_context,
                server_side=server_side,
                server_hostname=host,
                standard_compatible=standard_compatible,
            )
            if kernel == "require" and not isinstance(over_socket, KernelTLSStream):
                raise KernelTLSError(over_socket.extra(KernelTLSAttribute.why_not_kernel))
            return over_socket
        if kernel == "require":
            raise KernelTLSError(reason)
        in_memory = await InMemoryTLSStream.wrap(
            stream,
            server_side=server_side,
            hostname=server_hostname,
            ssl_context=ssl_context,
            standard_compatible=standard_compatible,
        )
    assert isinstance(in_memory, InMemoryTLSStream)
    in_memory.why_not_kernel = reason
    return in_memory


def _for_kernel(
    stream: AnyByteStream, context: ssl.SSLContext, kernel: Kernel
) -> tuple[ZeroCopySocketStream | None, str]:
    """Return the stream if it can have the kernel's TLS, else ``None`` and why not."""
    if kernel == "never":
        return None, "the program asked for TLS without the kernel"
    if not isinstance(stream, ZeroCopySocketStream) or isinstance(stream, ZeroCopyUNIXSocketStream):
        return None, f"a {type(stream).__name__} is no TCP stream of a ring"
    if type(context) is not ssl.SSLContext:
        return None, f"a {type(context).__name__} may need more than a socket"
    if (reason := why_no_kernel_tls()) is not None:
        return None, reason
    if stream._receiving.taken:
        raise stream._receiving.busy()
    if not stream._receiver.hand_over():
        return None, "the stream has received bytes ahead, which the kernel cannot take back"
    return stream, ""


def _encoded(host: str | None) -> bytes | None:
    # As anyio does; the ssl module would use the older IDNA 2003.
    if host is None or host.isascii():
        return None if host is None else host.encode("ascii")
    import idna

    return idna.encode(host, uts46=True)


@dataclass(eq=False)
class TLSListener(anyio_tls.TLSListener):
    """A listener whose connections do a TLS handshake; :class:`anyio.streams.tls.TLSListener`.

    What it does when a handshake fails is anyio's ``handle_handshake_error``: the connection is
    closed, the failure logged.

    :param listener: the listener below, which belongs to this one.
    :param ssl_context: of a server.
    :param standard_compatible: as of :func:`wrap_tls`.
    :param handshake_timeout: seconds for each handshake.
    :param kernel: as of :func:`wrap_tls`.
    """

    kernel: Kernel = "auto"

    async def serve(
        self, handler: Callable[[Any], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Accept connections, and run a handler in a task for each; does not return.

        If cancelled, it cancels the handlers that run in a task group of its own, and closes the
        connections whose handshake is under way.

        :param handler: takes a stream as of :func:`wrap_tls`.
        :param task_group: where the handlers run; one of the call's own by default.
        """

        @wraps(handler)
        async def wrapped(stream: AnyByteStream) -> None:
            try:
                made = await wrap_tls(
                    stream,
                    self.ssl_context,
                    server_side=True,
                    standard_compatible=self.standard_compatible,
                    kernel=self.kernel,
                    handshake_timeout=self.handshake_timeout,
                )
            except BaseException as exc:
                await self.handle_handshake_error(exc, stream)
            else:
                await handler(made)

        await self.listener.serve(wrapped, task_group)
