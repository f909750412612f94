"""What a peer is: a way to send, given connected sockets and a payload.

A peer is an asynchronous context manager, made from a function of one argument, the :class:`Job`.
It yields a function that sends the payload a number of times to each socket, which is measured;
setting up and cleaning up is not.  Each module of this folder adds its peers with :func:`peer`, so
a new peer is a new file.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Job", "Open", "Outside", "Peer", "Send", "peer", "peers_of"]

# How anyio runs each of the event loops.
BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


@dataclass(slots=True)
class Job:
    """What to send.

    :ivar sockets: connected and non-blocking; they may be closed when the peer is left.
    :ivar core: the core on which everything that sends runs.
    :ivar options: options of the command line, by name.
    :ivar notes: counters of its own that a peer reports.
    """

    sockets: list[socket.socket]
    payload: bytes
    core: int
    options: dict[str, str]
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outside:
    """What a program did that makes its own connection and takes its own time.

    :ivar claimed: bytes that it says it has sent.
    :ivar counted: bytes that were counted at the receiver.
    """

    claimed: int
    counted: int
    seconds: float
    cpu_seconds: float


Send: TypeAlias = Callable[[int], Awaitable[Outside | None]]
Open: TypeAlias = Callable[[Job], AbstractAsyncContextManager[Send]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to send.

    :ivar kind: the kind of scenario that it takes part in.
    :ivar backend: the event loop that it runs on; any, if it needs none.
    :ivar why_not: returns why it cannot run with these options and ``"place"``, or ``None``.
    """

    name: str
    kind: str
    backend: str
    open: Open
    why_not: Callable[[dict[str, str]], str | None]


_peers: dict[tuple[str, str], Peer] = {}


def peer(
    name: str,
    *kinds: str,
    backend: str = "asyncio",
    why_not: Callable[[dict[str, str]], str | None] = lambda _options: None,
) -> Callable[[Open], Open]:
    """Add a peer for kinds of scenarios; the function is an asynchronous context manager."""

    def add(function: Open) -> Open:
        assert backend in BACKENDS, backend
        for kind in kinds:
            assert (kind, name) not in _peers, (kind, name)
            _peers[kind, name] = Peer(name, kind, backend, function, why_not)
        return function

    return add


def peers_of(kind: str) -> list[Peer]:
    """Return the peers of a kind of scenario, from all modules of this folder."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        importlib.import_module(f"benchmarks.peers.{path.stem}")
    return [peer for peer in _peers.values() if peer.kind == kind]
