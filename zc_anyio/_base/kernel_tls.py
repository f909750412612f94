"""Whether the kernel encrypts TLS: on this machine, and on one socket."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import NamedTuple

from .errors import os_error

__all__ = ["OP_ENABLE_KTLS", "InKernel", "in_kernel", "why_no_kernel_tls"]

# Python names it since 3.12.
OP_ENABLE_KTLS = int(getattr(ssl, "OP_ENABLE_KTLS", 1 << 3))
# linux/tcp.h and linux/tls.h; the socket module has no names for them.
TCP_ULP = 31
SOL_TLS, TLS_TX, TLS_RX = 282, 1, 2
# struct tls_crypto_info: version and cipher.  The kernel would tell the keys to a larger buffer.
CRYPTO_INFO_SIZE = 4


class InKernel(NamedTuple):
    """Which directions of a connection the kernel encrypts and decrypts."""

    sending: bool
    receiving: bool


def why_no_kernel_tls() -> str | None:
    """Return why no connection of this process can have the kernel's TLS; ``None`` if some can."""
    if ssl.OPENSSL_VERSION_INFO < (3,):
        return f"{ssl.OPENSSL_VERSION} does not know the kernel's TLS (OpenSSL 3.0 is needed)"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as exc:
        # It is there, and wants a connection.
        if exc.errno == errno.ENOTCONN:
            return None
        if exc.errno == errno.ENOENT:
            return "the kernel's module tls is not loaded (modprobe tls), or this kernel has none"
        return f"the kernel refuses TLS: {os_error(exc.errno or 0)}"
    return None


def in_kernel(sock: socket.socket) -> InKernel:
    """Return which directions the kernel has the keys of."""
    return InKernel(_has_keys(sock, TLS_TX), _has_keys(sock, TLS_RX))


def _has_keys(sock: socket.socket, direction: int) -> bool:
    try:
        sock.getsockopt(SOL_TLS, direction, CRYPTO_INFO_SIZE)
    except OSError:
        return False
    return True
