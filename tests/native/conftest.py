"""Cores that are freed after the test, with a check that all of their memory was freed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.conftest import usable
from tests.native.direct import Direct
from tests.native.harness import Queue
from tests.native.model_state import (
    DATAGRAM,
)
from tests.support.peers import tcp_pair
from zc_anyio._native._zc import lib


@pytest.fixture
def queues() -> Iterator[list[Queue]]:
    made: list[Queue] = []
    yield made
    for queue in made:
        assert lib.zc_core_free(queue.core) == 0


@pytest.fixture
def q(queues: list[Queue]) -> Queue:
    queues.append(Queue())
    return queues[0]


@pytest.fixture
def udp(queues: list[Queue]) -> Queue:
    queues.append(Queue(DATAGRAM))
    return queues[0]


@pytest.fixture
def made() -> Iterator[list[Direct]]:
    usable("io_uring")
    rings: list[Direct] = []
    yield rings
    for ring in rings:
        ring.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with tcp_pair() as (client, peer):
        yield client, peer


@pytest.fixture
def ring(made: list[Direct], pair: tuple[socket.socket, socket.socket]) -> Direct:
    made.append(Direct(pair[0]))
    return made[0]
