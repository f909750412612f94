"""The metrics of the server, for Prometheus and for the pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import SocketStream, TaskStatus
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import (
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import zc_anyio
from zc_anyio.metrics import RingCollector

__all__ = ["Counted", "Metrics"]

log = logging.getLogger("examples")

# For another worker to tell its metrics.
ANSWER_SECONDS = 2.0


class ServingCollector(Collector):
    """Event loop and driver of the server, and its private memory.

    ``process_resident_memory_bytes`` also counts the page cache that is mapped for sending.
    """

    def __init__(self, backend: str, driver: str) -> None:
        self._labels = {"backend": backend, "driver": driver}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("serving", "What the server runs on", self._labels)
        text = Path("/proc/self/status").read_text()
        if (match := re.search(r"^RssAnon:\s*(\d+) kB$", text, re.MULTILINE)) is not None:
            yield GaugeMetricFamily(
                "process_private_memory_bytes", "Without mapped files", int(match[1]) * 1024
            )


class Metrics:
    """The metrics of a server, in a registry of their own, to which an application adds its own.

    :ivar requests: requests answered, by status.
    """

    def __init__(self, ring: zc_anyio.Ring, backend: str) -> None:
        self.registry = CollectorRegistry()
        # process_resident_memory_bytes and the like.
        ProcessCollector(registry=self.registry)
        self.registry.register(ServingCollector(backend, ring.capabilities.driver))
        self.registry.register(RingCollector(ring))
        self.requests = Counter(
            "http_requests", "Requests answered", ["status"], registry=self.registry
        )
        self._folder: Path | None = None

    async def share(
        self, folder: Path, worker: str, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Give the metrics of this worker to the others, and theirs to whoever asks this one.

        :param folder: where all workers of the server have sockets, which only its user may open.
        """

        async def tell(stream: SocketStream) -> None:
            # Who asked may have given up by now.
            with suppress(anyio.BrokenResourceError):
                async with stream:
                    await stream.send(generate_latest(self.registry))

        path = folder / worker
        # One that was killed has left its socket.
        path.unlink(missing_ok=True)
        try:
            async with await anyio.create_unix_listener(path) as listener:
                self._folder = folder
                task_status.started()
                await listener.serve(tell)
        finally:
            _remove(path)

    async def answer(self, _request: Request) -> Response:
        """Answer ``/metrics``."""
        asked: Collector = self.registry
        if self._folder is not None:
            asked = Workers(await _ask_all(self._folder))
        return Response(
            generate_latest(asked),
            media_type=CONTENT_TYPE_PLAIN_0_0_4,
            headers={"cache-control": "no-store"},
        )


class Workers(Collector):
    """The metrics of several workers, which a label tells apart.

    :param told: what each of them has told, by its name.
    """

    def __init__(self, told: dict[str, str]) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for worker, text in sorted(self._told.items()):
            for family in text_string_to_metric_families(text):
                known = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for name, labels, value, *_ in family.samples:
                    known.add_sample(name, {**labels, "worker": worker}, value)
        yield from merged.values()


def _remove(path: Path) -> None:
    """Remove a socket, and with the last one the folder, as the parent may have been killed."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # others are there
        path.parent.rmdir()


async def _ask_all(folder: Path) -> dict[str, str]:
    """Ask all workers for their metrics; those that do not answer are left out."""
    told: dict[str, str] = {}

    async def ask(path: anyio.Path) -> None:
        text = bytearray()
        try:
            with anyio.fail_after(ANSWER_SECONDS):
                async with await anyio.connect_unix(path) as stream:
                    async for data in stream:
                        text += data
        except (OSError, TimeoutError, anyio.BrokenResourceError) as exc:
            log.warning("worker %s does not tell its metrics: %r", path.name, exc)
        else:
            told[path.name] = text.decode()

    async with anyio.create_task_group() as tasks:
        async for path in anyio.Path(folder).iterdir():
            tasks.start_soon(ask, path)
    return told


class Counted:
    """Middleware that counts answers by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, count)
