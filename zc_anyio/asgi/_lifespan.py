"""Telling an application that the server starts, and that it stops."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio

from ._connection import Application
from ._exchange import Message

__all__ = ["LifespanError", "running"]

log = logging.getLogger("zc_anyio.asgi")


class LifespanError(Exception):
    """The application has reported that it cannot start."""


@asynccontextmanager
async def running(
    app: Application, mode: Literal["auto", "on", "off"]
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Tell an application that the server starts, and at the end that it stops; yield its state.

    :raises LifespanError: it could not start, or it has no lifespan and the mode is ``"on"``.
    """
    if mode == "off":
        yield None
        return
    lifespan = _Lifespan(app)
    raised: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lifespan.run)
        try:
            await lifespan.start(required=mode == "on")
            try:
                yield lifespan.state
            except Exception as exc:
                # The task group does not see it: it would wrap it in an exception group.
                raised = exc
            await lifespan.stop()
        except LifespanError as exc:
            raised = exc
        tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _Lifespan:
    def __init__(self, app: Application) -> None:
        self.state: dict[str, Any] | None = {}
        self._app = app
        self._asked = 0
        self._stopping = anyio.Event()
        self._started = anyio.Event()
        self._stopped = anyio.Event()
        self._failure: str | None = None
        self._error: BaseException | None = None

    async def run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as exc:
            self._error = exc
            if self._started.is_set() and self._failure is None:
                log.exception("Exception in 'lifespan' protocol")
        finally:
            self._started.set()
            self._stopped.set()

    async def start(self, *, required: bool) -> None:
        log.info("Waiting for application startup.")
        await self._started.wait()
        if self._failure is not None:
            raise LifespanError(self._failure)
        if self._error is not None and required:
            raise LifespanError("the application does not support lifespan") from self._error
        if self._error is not None:
            self.state = None
            log.info("ASGI 'lifespan' protocol appears unsupported.")
        else:
            log.info("Application startup complete.")

    async def stop(self) -> None:
        if self._stopped.is_set():
            return
        log.info("Waiting for application shutdown.")
        self._stopping.set()
        await self._stopped.wait()
        if self._failure is not None:
            log.error("Application shutdown failed: %s", self._failure)
        elif self._error is None:
            log.info("Application shutdown complete.")

    async def _receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        if self._asked > 2:
            await anyio.sleep_forever()
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind.endswith(".failed"):
            self._failure = message.get("message", "") or "the application gave no reason"
        if kind.startswith("lifespan.startup."):
            self._started.set()
        elif kind.startswith("lifespan.shutdown."):
            self._stopped.set()
        else:
            raise RuntimeError(f"{kind} is not a message of the lifespan protocol")
