"""The kinds of sockets that anyio's functions take."""

from __future__ import annotations

from socket import AddressFamily, SocketKind
from typing import Any, Literal, TypeAlias

__all__ = ["Family", "UNIXKind", "of_kind"]

UNIXKind: TypeAlias = Literal[SocketKind.SOCK_STREAM, SocketKind.SOCK_SEQPACKET]
Family: TypeAlias = Literal[AddressFamily.AF_UNSPEC, AddressFamily.AF_INET, AddressFamily.AF_INET6]


def of_kind(kind: UNIXKind) -> dict[str, Any]:
    """Return the argument that gives anyio's function this kind."""
    # anyio before 4.16 has no such parameter.
    return {} if kind is SocketKind.SOCK_STREAM else {"kind": kind}
