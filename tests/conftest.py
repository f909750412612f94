"""Backends, drivers, and the check that nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.support.backends import BACKENDS
from tests.support.needs import missing, why_not
from tests.support.netns import Rig, rig
from zc_anyio import Ring
from zc_anyio.testing import nothing_left

DRIVERS = ["io_uring", "msg_zerocopy", "copy"]
# The copy driver needs a buffer only until the socket has taken it, so it never holds one.
HOLDING_DRIVERS = [name for name in DRIVERS if name != "copy"]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param


def usable(name: str) -> str:
    if (reason := why_not(name)) is not None:
        missing(f"the driver {name} cannot run: {reason}")
    return name


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Every driver."""
    return usable(request.param)


@pytest.fixture(params=HOLDING_DRIVERS)
def holding_driver(request: pytest.FixtureRequest) -> str:
    """Every driver with which the kernel still reads a buffer after it has taken it."""
    return usable(request.param)


@pytest.fixture
def io_uring_runs() -> None:
    """Skip where the driver io_uring cannot run, as on kernels before 6.1."""
    usable("io_uring")


@pytest.fixture(scope="session", autouse=True)
def descriptors_of_the_process() -> None:
    """Open before the tests what is opened once and kept, such as uvloop's pipe for signals."""
    for backend in BACKENDS:
        values: Any = backend.values[0]
        anyio.run(anyio.sleep, 0, backend=values[0], backend_options=values[1])


@pytest.fixture(autouse=True)
def rings() -> Iterator[list[Ring]]:
    """The rings that a test has opened: after it, all are closed, with nothing held or open."""
    with nothing_left() as opened:
        yield opened


@pytest.fixture
def namespaces() -> Iterator[Rig]:
    """Two network namespaces with a slow link from one to the other."""
    with rig() as made:
        yield made
