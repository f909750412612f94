"""Cores that are freed after the test, with a check that all of their memory was freed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.native.harness import Queue
from tests.native.model_state import (
    DATAGRAM,
)
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
