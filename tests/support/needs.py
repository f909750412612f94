"""What a test needs from the machine, and what happens if it is missing."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from typing import NoReturn

import anyio
import pytest

import zc_anyio

# With AddressSanitizer freed memory is kept for a while, so sizes of the process mean nothing.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything is required (``ZC_ANYIO_REQUIRE_ALL=1``)."""
    if os.environ.get("ZC_ANYIO_REQUIRE_ALL") == "1":
        pytest.fail(f"ZC_ANYIO_REQUIRE_ALL is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def need_root(what: str) -> None:
    """Skip unless the process is root's."""
    if os.geteuid() != 0:
        missing(f"{what} needs root")


def need_command(name: str, package: str) -> str:
    """Return the path of a command; skip when it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        missing(f"the command {name} is not installed (apt install {package})")
    return path


@functools.cache
def why_not(driver: str) -> str | None:
    """Return why a driver cannot run here, or ``None``."""

    async def attempt() -> str | None:
        try:
            async with zc_anyio.open_ring(driver=driver):  # type: ignore[arg-type]
                return None
        except zc_anyio.DriverUnavailable as exc:
            return str(exc)

    if sys.platform != "linux":
        return "this is not Linux"
    return anyio.run(attempt)
