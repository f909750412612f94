"""Exceptions of this library's own; everything else is anyio's or the standard library's."""

from __future__ import annotations

import os

__all__ = ["DriverUnavailable", "os_error"]


class DriverUnavailable(RuntimeError):  # noqa: N818 - as anyio's exceptions are named
    """The driver that was asked for cannot run here; the message says why."""


def os_error(number: int, note: str = "") -> OSError:
    """Return the ``OSError`` (of the subclass that fits) for a positive errno."""
    text = os.strerror(number)
    return OSError(number, f"{text}: {note}" if note else text)
